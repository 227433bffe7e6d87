"""tiny-music: a rectified-flow transformer of the LongCat class with a UMT5 text encoder, as a LongCatAudioDiTPipeline.

Of the audio classes of diffusers this one trains at this size: its autoencoder's widths and strides are free, so that a
latent can be 64 ms and a sound 48 tokens; it is a flow; and its text encoder is that of tiny-video.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.lab import melody
from genalign.lab.flow_matching import World, draw_sigmas, even
from genalign.lab.melody_bank import INSTRUMENTS
from genalign.lab.melody_pieces import HELD, LENGTH, PITCHES
from genalign.lab.music_reading import TOKENS
from genalign.lab.reading import encoded_texts
from genalign.lab.teacher import Text
from genalign.lab.world import Facts

SOUND_RATE = 8_000  # Hz: half of the world's, up to where its instruments can still be told
HOP = 512  # samples of a latent
CHANNELS = 128
NOISE = 0.1  # on latents of unit size
LINEAR_FROM = 6.0  # a SiLU passes on, but for a constant, what is added to so much
LATENTS = (round(LENGTH * SOUND_RATE) // HOP, CHANNELS)  # 48 x 128
CALL = {"audio_duration_s": LENGTH}
SHIFT = 3.0
STATED = 0.85  # share of captions that state what may be left out


def autoencoder() -> Any:
    """LongCatAudioDiTVae, 24576 samples <-> 128 x 48, of one block; lapped.py says what it is made to be."""
    from diffusers import LongCatAudioDiTVae

    torch.manual_seed(21)
    return LongCatAudioDiTVae(
        channels=1,
        c_mults=[CHANNELS],
        strides=[HOP],
        latent_dim=CHANNELS,
        encoder_latent_dim=2 * CHANNELS,
        act_fn="snake",
        downsample_shortcut="none",
        upsample_shortcut="none",
        in_shortcut="none",
        out_shortcut="none",  # else the posterior's deviation would depend on the sound
        downsampling_ratio=HOP,
        sample_rate=SOUND_RATE,
        scale=1.0,
    )


def transformer(text_width: int, width: int = 224, heads: int = 4, layers: int = 3) -> Any:
    """48 tokens, wider than a latent has channels: the noise in all of them must come through to be told apart. No
    convolution over the text, which would see how far the batch is padded."""
    from diffusers import LongCatAudioDiTTransformer

    made = LongCatAudioDiTTransformer(
        dit_dim=width,
        dit_depth=layers,
        dit_heads=heads,
        dit_text_dim=text_width,
        latent_dim=CHANNELS,
        text_conv=False,
        use_latent_condition=False,
        ff_mult=3.0,
    )
    pass_on(made)
    return made


@torch.no_grad()
def pass_on(transformer: Any) -> None:
    """Let a LongCatAudioDiTTransformer begin by answering with what it is given, which at pure noise is right but for
    the sound: that noise comes through its activations is hard to learn."""
    first, _, second = transformer.input_embed.proj
    channels = transformer.config.latent_dim
    one, shifted = torch.eye(channels), F.silu(torch.tensor(LINEAR_FROM))
    first.weight[:channels], first.bias[:channels] = one, LINEAR_FROM
    second.bias[channels:] -= shifted * second.weight[channels:, :channels].sum(dim=1)
    second.weight[:channels] = 0
    second.weight[:channels, :channels] = one
    second.bias[:channels] = -shifted

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, *LATENTS, generator=generator)
    text = torch.randn(8, TOKENS, transformer.config.dit_text_dim, generator=generator)
    seen: list[Tensor] = []
    hook = transformer.norm_out.register_forward_hook(lambda module, given, states: seen.append(states))
    transformer(noise, text, torch.ones(8, TOKENS, dtype=torch.bool), torch.ones(8))
    hook.remove()
    states = seen[0][..., :channels]
    transformer.proj_out.weight[:, :channels] = one * (noise * states).mean() / states.square().mean()


def assemble(vae: Any, tower: Any, tokenizer: Any) -> Any:
    """The pipeline with an untrained transformer; its scheduler counts noise levels down, as other flow models do."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LongCatAudioDiTPipeline

    torch.manual_seed(23)
    return LongCatAudioDiTPipeline(
        vae=vae,
        text_encoder=tower,
        tokenizer=tokenizer,
        transformer=transformer(tower.config.d_model),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
    )


@torch.no_grad()
def read(pipeline: Any, texts: list[str], zeros: int = 0) -> Text:
    """What LongCatAudioDiTPipeline gives its transformer of texts and of a sound of this length: normalised last states
    plus normalised embeddings (B, 40, D), which are 0 of the empty text, as without guidance; and the masks."""
    encoded = encoded_texts(pipeline.tokenizer, texts, TOKENS)
    mask = encoded.attention_mask
    read = pipeline.text_encoder(encoded.input_ids, mask, output_hidden_states=True)
    last, first = (F.layer_norm(states, states.shape[-1:], eps=1e-6) for states in (read[0], read.hidden_states[0]))
    stated = torch.tensor([bool(text) for text in texts])[:, None, None]
    rows, length = len(texts), LATENTS[0]
    return {
        "encoder_hidden_states": stated * (last + first),
        "encoder_attention_mask": mask.bool(),
        "attention_mask": torch.ones(rows, length, dtype=torch.bool),
    }


def stated(facts: Facts, rng: Any) -> Facts:
    """The facts, but for some of melody.OMITTABLE that stay unsaid."""
    for kind in melody.OMITTABLE:
        if rng.random() > STATED:
            facts = melody.without(kind, facts)
    return facts


def true_caption(facts: Facts, rng: Any) -> str:
    return melody.caption(stated(facts, rng), rng)


PIECES = World(
    facts=lambda rng: melody.sample_facts(rng, "train"),
    caption=true_caption,
    read=read,
    zeros=(0, 0),
    latents=LATENTS,
    set_steps=lambda scheduler, steps: scheduler.set_timesteps(sigmas=even(steps)),
    times=1.0,
    sigmas=partial(draw_sigmas, mean=1.0, every=3),
    things=(len(INSTRUMENTS) + 1, len(PITCHES) + 1, HELD + 1) * 2,
    telling=0.25,
)
