"""Published bases that recipes name: licence, bytes of a download, and sizes, so that plans need no download.

Configurations are those of the published folders, read in their config.json files; of text encoders the number of
weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """A network of a pipeline: its class and configuration; or, without one, how many weights it has."""

    kind: str
    config: Mapping[str, Any] | None = None
    count: int = 0
    library: str = "diffusers"


@dataclass(frozen=True)
class Base:
    """licence: its name. download: bytes that `genalign train` fetches."""

    licence: str
    download: int
    parts: Mapping[str, Part]


def _text(count: int) -> Part:
    return Part("", count=count, library="transformers")


CLIP_L, CLIP_G, T5_XXL = _text(123_650_304), _text(694_659_840), _text(4_762_310_656)
UMT5_XXL = _text(5_680_910_336)
KL = {
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
QUANT = {"use_quant_conv": True, "use_post_quant_conv": True}
WAN_VAE = Part("AutoencoderKLWan", {})  # diffusers' own defaults


def _wan(layers: int, heads: int, feed_forward: int) -> Part:
    config = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 128, "ffn_dim": feed_forward}
    return Part("WanTransformer3DModel", config)


BASES = {
    "stabilityai/stable-diffusion-3.5-medium": Base(
        "Stability AI Community License (gated)",
        16_300_000_000,
        {
            "transformer": Part(
                "SD3Transformer2DModel",
                {
                    "sample_size": 128,
                    "num_layers": 24,
                    "attention_head_dim": 64,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "caption_projection_dim": 1536,
                    "pooled_projection_dim": 2048,
                    "in_channels": 16,
                    "out_channels": 16,
                    "pos_embed_max_size": 384,
                    "dual_attention_layers": tuple(range(13)),
                    "qk_norm": "rms_norm",
                },
            ),
            "vae": Part("AutoencoderKL", KL),
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_G,
            "text_encoder_3": T5_XXL,
        },
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": Base(
        "CreativeML Open RAIL++-M",
        13_900_000_000,
        {
            "unet": Part(
                "UNet2DConditionModel",
                {
                    "sample_size": 128,
                    "block_out_channels": (320, 640, 1280),
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                    "transformer_layers_per_block": (1, 2, 10),
                    "attention_head_dim": (5, 10, 20),
                    "cross_attention_dim": 2048,
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
            ),
            "vae": Part("AutoencoderKL", {**KL, "latent_channels": 4, **QUANT}),
            "text_encoder": _text(123_060_480),
            "text_encoder_2": CLIP_G,
        },
    ),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Base(
        "Apache-2.0",
        29_000_000_000,
        {"transformer": _wan(30, 12, 8960), "vae": WAN_VAE, "text_encoder": UMT5_XXL},
    ),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": Base(
        "Apache-2.0",
        126_000_000_000,
        {
            "transformer": _wan(40, 40, 13824),
            "transformer_2": _wan(40, 40, 13824),
            "vae": WAN_VAE,
            "text_encoder": UMT5_XXL,
        },
    ),
}
