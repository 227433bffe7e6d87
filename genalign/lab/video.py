"""tiny-video: a rectified-flow transformer of the Wan class with a UMT5 text encoder, as a WanPipeline."""

import math
from functools import partial
from typing import Any

import torch

from genalign.lab import moves
from genalign.lab.flow_matching import World, draw_sigmas
from genalign.lab.moves_clips import FRAMES, SIDE
from genalign.lab.moves_reading import SPEEDLESS, TOKENS
from genalign.lab.reading import NAMELESS, t5_states
from genalign.lab.sprites import sprites
from genalign.lab.teacher import Text
from genalign.lab.world import Facts

SPATIAL, TEMPORAL = 8, 4  # pixels and frames of a latent
CHANNELS = 32
NOISE = 0.1  # on latents of unit size
LATENTS = (CHANNELS, 1 + (FRAMES - 1) // TEMPORAL, SIDE // SPATIAL, SIDE // SPATIAL)  # 32 x 3 x 6 x 6
CALL = {"height": SIDE, "width": SIDE, "num_frames": FRAMES, "max_sequence_length": TOKENS}
DEFAULT_TOKENS = 512  # of WanPipeline's call, all but the text's own zero; its transformer attends to them
SHIFT = 3.0  # Wan's own; background and motion are decided where sigma > 0.8


def autoencoder() -> Any:
    """AutoencoderKLWan, 9 frames of 48x48x3 <-> 3 latent frames of 6x6x32, of which the first is the first frame alone.

    Pixels are folded 2x2 before the first convolution, as Wan 2.2 has them. The class halves space wherever it halves
    time, so four frames a latent leave 4x in space or, so folded, 8x. Folded, no convolution runs at full size, which
    costs a third of the 4x autoencoder of the same widths and as many latents (8 channels, 12x12), in training and
    whenever a sample is decoded. The deviation of its posterior is NOISE everywhere, not learnt: a KL term would have
    to be weighed against the picture to say the same.
    """
    from diffusers import AutoencoderKLWan

    torch.manual_seed(11)
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=24,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * CHANNELS,  # measured when it is trained
        latents_std=[1.0] * CHANNELS,
        patch_size=2,
        in_channels=3 * 2 * 2,
        out_channels=3 * 2 * 2,
        scale_factor_temporal=TEMPORAL,
        scale_factor_spatial=SPATIAL,
    )
    with torch.no_grad():
        vae.quant_conv.weight[CHANNELS:] = 0.0
        vae.quant_conv.bias[CHANNELS:] = 2 * math.log(NOISE)
    return vae


def transformer(text_width: int, heads: int = 4, layers: int = 5) -> Any:
    """108 tokens: no patches, since a latent is 8 pixels wide already."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=heads,
        attention_head_dim=48,  # a third each for the places in time, height and width
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=text_width,
        freq_dim=128,
        ffn_dim=2 * heads * 48,
        num_layers=layers,
        rope_max_seq_len=64,
    )


def assemble(vae: Any, tower: Any, tokenizer: Any) -> Any:
    """The pipeline with an untrained transformer.

    Its scheduler is Wan's path in steps of first order: the pipeline's call takes no noise levels, and the last of few
    steps of FlowMatchEulerDiscreteScheduler would begin at 0.009.
    """
    from diffusers import DPMSolverMultistepScheduler, WanPipeline

    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT, solver_order=1
    )
    torch.manual_seed(13)
    return WanPipeline(
        transformer=transformer(tower.config.d_model),
        scheduler=scheduler,
        vae=vae,
        text_encoder=tower,
        tokenizer=tokenizer,
    )


@torch.no_grad()
def read(pipeline: Any, texts: list[str], zeros: int = 0) -> Text:
    """What WanPipeline gives its transformer of texts: (B, 32 + zeros, D), 0 where a text has ended."""
    (states,) = t5_states(pipeline.text_encoder, pipeline.tokenizer, texts, TOKENS)
    return {"encoder_hidden_states": torch.cat([states, states.new_zeros(len(states), zeros, states.shape[2])], dim=1)}


def true_caption(facts: Facts, rng: Any) -> str:
    """True of the clip; some leave the background or the speed unsaid."""
    for kind, share in (("background", NAMELESS), ("speed", SPEEDLESS)):
        if rng.random() < share:
            facts = moves.without(kind, facts)
    return moves.caption(facts, rng)


def facts(rng: Any) -> Facts:
    """Of a training clip, in a third of which two objects are drawn on purpose."""
    return moves.sample_pair(rng, "train") if rng.random() < 1 / 3 else moves.sample_facts(rng, "train")


CLIPS = World(
    facts=facts,
    caption=true_caption,
    read=read,
    zeros=(0, DEFAULT_TOKENS - TOKENS),
    latents=LATENTS,
    set_steps=lambda scheduler, steps: scheduler.set_timesteps(steps),
    sigmas=partial(draw_sigmas, mean=0.6, deviation=1.3, every=4),  # what an object looks like is decided below 0.85
    things=(len(sprites()) + 1,),
)
