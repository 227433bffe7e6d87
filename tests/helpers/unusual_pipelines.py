"""Tiny pipelines that enter their grid late, change latents between steps, or read and return unusual things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import PIL.Image
import torch

from tests.helpers.tiny_pipelines import (
    BETAS,
    FAMILIES,
    SHORT,
    SMALL,
    T5_TEXT,
    VAE,
    WIDTH,
    Family,
    flow,
    gemma_text,
    letter_tokenizer,
    part,
    text,
    text_model,
)

HALF = PIL.Image.new("L", (16, 16))
HALF.paste(255, (0, 0, 8, 16))  # the left half is painted anew
NO_BINS = {**SMALL, "use_resolution_binning": False}


def other(name: str, pipeline: str, **call: Any) -> Family:
    """Another pipeline of a family's components."""
    return replace(FAMILIES[name], pipeline=pipeline, call=call)


LATE = {
    "stable-diffusion": other("stable-diffusion", "StableDiffusionImg2ImgPipeline", strength=0.6),
    "stable-diffusion-xl": other("stable-diffusion-xl", "StableDiffusionXLImg2ImgPipeline", strength=0.6),
    "stable-diffusion-3": other("stable-diffusion-3", "StableDiffusion3Img2ImgPipeline", strength=0.6, **SMALL),
    "flux": other("flux", "FluxImg2ImgPipeline", strength=0.6, **SHORT),
}

WIDE = {
    "transformer": part(
        "SD3Transformer2DModel", sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8,
    ),
    "vae": part(
        "AutoencoderKL", latent_channels=16, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, sample_size=16, shift_factor=0.1,
    ),
}  # fmt: skip
PAINTED = other("stable-diffusion-3", "StableDiffusion3InpaintPipeline", mask_image=HALF, **SMALL)
BLENDED = {
    "stable-diffusion": other("stable-diffusion", "StableDiffusionInpaintPipeline", mask_image=HALF, **SMALL),
    "stable-diffusion-3": replace(PAINTED, parts={**PAINTED.parts, **WIDE}),
    "flux": other("flux", "FluxInpaintPipeline", mask_image=HALF, strength=0.6, **SHORT),
}


def prx_transformer(channels: int) -> Callable[[], Any]:
    def make() -> Any:
        transformer = part(
            "PRXTransformer2DModel", in_channels=channels, patch_size=2, context_in_dim=WIDTH, hidden_size=16,
            num_heads=2, depth=2, axes_dim=[4, 4],
        )()  # fmt: skip
        for parameter in transformer.parameters():  # its gates are initialised to zero, which would hide the rest
            if not bool(parameter.any()):
                torch.nn.init.normal_(parameter, std=0.05)
        return transformer

    return make


GEMMA = text(gemma_text, letter_tokenizer)
UNUSUAL = {
    "prx": Family(
        "PRXPipeline",
        {"transformer": prx_transformer(4), "scheduler": flow(shift=3.0), **GEMMA, **VAE, "default_sample_size": 16},
        flow=True,
        call=NO_BINS,
    ),
    "prx-pixel": Family(
        "PRXPixelPipeline",
        {
            "transformer": prx_transformer(3),
            "scheduler": flow(shift=3.0),
            **GEMMA,
            "default_sample_size": 16,
            "prompt_max_tokens": 12,
        },
        flow=True,
        call=NO_BINS,
    ),
    "cogview-3-plus": Family(
        "CogView3PlusPipeline",
        {
            **T5_TEXT,
            **VAE,
            "transformer": part(
                "CogView3PlusTransformer2DModel", in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
                num_attention_heads=2, text_embed_dim=WIDTH, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8,
                sample_size=8,
            ),
            "scheduler": part(
                "CogVideoXDDIMScheduler", **{**BETAS, "steps_offset": 0}, snr_shift_scale=4.0,
                prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
            ),
        },
        call=SMALL,
    ),
    "bria-fibo": Family(
        "BriaFiboPipeline",
        {
            "transformer": part(
                "BriaFiboTransformer2DModel", in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=2 * WIDTH, axes_dims_rope=[2, 2, 4], text_encoder_dim=WIDTH,
            ),
            "scheduler": flow(),
            "vae": part(
                "AutoencoderKLWan", base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
                latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
            ),
            "text_encoder": text_model(
                "SmolLM3ForCausalLM", "SmolLM3Config", vocab_size=128001, hidden_size=WIDTH, intermediate_size=WIDTH,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, bos_token_id=1,
                eos_token_id=2,
            ),
            "tokenizer": letter_tokenizer,
        },
        flow=True,
        call={**SMALL, "max_sequence_length": 26},
    ),
}  # fmt: skip
