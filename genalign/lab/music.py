"""tiny-music: a rectified-flow transformer of the LongCat class with a UMT5 text encoder, as a LongCatAudioDiTPipeline.

Of the audio classes of diffusers this one trains at this size: its autoencoder's widths and strides are free, so that a
latent can be 64 ms and a picture of one sound 48 tokens; it is a flow; and its text encoder is that of tiny-video.
"""

from typing import Any

import torch
from torch.nn import functional as F

from genalign.lab import melody
from genalign.lab.flow_matching import World, even
from genalign.lab.melody_bank import INSTRUMENTS, RATE
from genalign.lab.melody_pieces import LENGTH, PITCHES, SAMPLES
from genalign.lab.music_reading import TOKENS
from genalign.lab.reading import encoded_texts
from genalign.lab.teacher import Text
from genalign.lab.world import Facts

STRIDES = (16, 8, 8)
HOP = 16 * 8 * 8  # samples of a latent
CHANNELS = 64
NOISE = 0.1  # on latents of unit size
LATENTS = (SAMPLES // HOP, CHANNELS)  # 48 x 64
CALL = {"audio_duration_s": LENGTH}
SHIFT = 3.0
STATED = 0.5  # share of captions that state what may be left out


def autoencoder() -> Any:
    """LongCatAudioDiTVae, 49152 samples <-> 64 x 48. All but a few of its channels are at a sixteenth of the sampling
    rate and below: at the full rate a convolution costs sixteen times as much, in training and for every sample that
    is drawn. Its posterior's deviation is NOISE everywhere, not learnt."""
    from diffusers import LongCatAudioDiTVae

    torch.manual_seed(21)
    vae = LongCatAudioDiTVae(
        channels=8,
        c_mults=[8, 16, 8],
        strides=list(STRIDES),
        latent_dim=CHANNELS,
        encoder_latent_dim=2 * CHANNELS,
        act_fn="elu",
        out_shortcut="none",  # else the posterior's deviation would depend on the sound
        downsampling_ratio=HOP,
        sample_rate=RATE,
        scale=1.0,
    )
    last = vae.encoder.layers[-1]
    with torch.no_grad():
        last.weight_g[CHANNELS:] = 0.0
        last.bias[CHANNELS:] = float(torch.tensor(NOISE).expm1().log())  # softplus of it is NOISE
    return vae


def transformer(text_width: int, width: int = 160, heads: int = 4, layers: int = 5) -> Any:
    """48 tokens. No convolution over the text: it would see how far the batch is padded."""
    from diffusers import LongCatAudioDiTTransformer

    return LongCatAudioDiTTransformer(
        dit_dim=width,
        dit_depth=layers,
        dit_heads=heads,
        dit_text_dim=text_width,
        latent_dim=CHANNELS,
        text_conv=False,
        ff_mult=2.0,
    )


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
        "latent_cond": torch.zeros(rows, length, CHANNELS),
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
    things=len(INSTRUMENTS) * len(PITCHES) + 1,
)
