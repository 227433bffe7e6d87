"""Tiny pipelines that enter their grid late, change latents between steps, or read and return unusual things."""

from __future__ import annotations

from typing import Any

import diffusers
import PIL.Image
import torch

from tests.tiny_pipelines import (
    BETAS,
    FAMILIES,
    LETTERS,
    SMALL,
    WIDTH,
    Family,
    flux,
    gemma_text,
    letter_tokenizer,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    t5_text,
)

HALF = PIL.Image.new("L", (16, 16))
HALF.paste(255, (0, 0, 8, 16))  # the left half is painted anew
SHORT = FAMILIES["flux"].call


def of(kind: Any, build: Any) -> Any:
    """A builder of another pipeline of the same components."""
    return lambda: kind(**build().components)


def stable_diffusion_3_of_16_channels() -> Any:
    pipeline = stable_diffusion_3()
    torch.manual_seed(0)
    wide = {**pipeline.transformer.config, "in_channels": 16, "out_channels": 16}
    pipeline.register_modules(
        transformer=diffusers.SD3Transformer2DModel.from_config(wide).eval(),
        vae=diffusers.AutoencoderKL.from_config({**pipeline.vae.config, "latent_channels": 16}).eval(),
    )
    return pipeline


def prx_parts(channels: int) -> dict[str, Any]:
    torch.manual_seed(0)
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=channels, patch_size=2, context_in_dim=WIDTH, hidden_size=16, num_heads=2, depth=2, axes_dim=[4, 4]
    ).eval()
    for parameter in transformer.parameters():  # its gates are initialised to zero, which would hide the rest
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.05)
    return {
        "transformer": transformer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": gemma_text(),
        "tokenizer": letter_tokenizer(),
    }


def prx() -> Any:
    return diffusers.PRXPipeline(**prx_parts(4), vae=stable_diffusion_3().vae, default_sample_size=16)


def prx_pixel() -> Any:
    return diffusers.PRXPixelPipeline(**prx_parts(3), default_sample_size=16, prompt_max_tokens=12)


def cogview_3_plus() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2, text_embed_dim=WIDTH,
        time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(
        **{**BETAS, "steps_offset": 0}, snr_shift_scale=4.0, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    return diffusers.CogView3PlusPipeline(
        letter_tokenizer(), t5_text(), stable_diffusion().vae, transformer.eval(), scheduler
    )


def bria_fibo() -> Any:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    torch.manual_seed(0)
    encoder = SmolLM3ForCausalLM(
        SmolLM3Config(
            vocab_size=128001, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    transformer = diffusers.BriaFiboTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=2 * WIDTH, axes_dims_rope=[2, 2, 4], text_encoder_dim=WIDTH,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    return diffusers.BriaFiboPipeline(
        transformer, diffusers.FlowMatchEulerDiscreteScheduler(), vae, encoder, letter_tokenizer()
    )


LATE = {
    "stable-diffusion": Family(
        of(diffusers.StableDiffusionImg2ImgPipeline, stable_diffusion), False, {"strength": 0.6}
    ),
    "stable-diffusion-xl": Family(
        of(diffusers.StableDiffusionXLImg2ImgPipeline, stable_diffusion_xl), False, {"strength": 0.6}
    ),
    "stable-diffusion-3": Family(
        of(diffusers.StableDiffusion3Img2ImgPipeline, stable_diffusion_3), True, {"strength": 0.6, **SMALL}
    ),
    "flux": Family(of(diffusers.FluxImg2ImgPipeline, flux), True, {"strength": 0.6, **SHORT}),
}
BLENDED = {
    "stable-diffusion": Family(
        of(diffusers.StableDiffusionInpaintPipeline, stable_diffusion), False, {"mask_image": HALF, **SMALL}
    ),
    "stable-diffusion-3": Family(
        of(diffusers.StableDiffusion3InpaintPipeline, stable_diffusion_3_of_16_channels),
        True,
        {"mask_image": HALF, **SMALL},
    ),
    "flux": Family(of(diffusers.FluxInpaintPipeline, flux), True, {"mask_image": HALF, "strength": 0.6, **SHORT}),
}
UNUSUAL = {
    "prx": Family(prx, True, {**SMALL, "use_resolution_binning": False}),
    "prx-pixel": Family(prx_pixel, True, {**SMALL, "use_resolution_binning": False}),
    "cogview-3-plus": Family(cogview_3_plus, False, SMALL),
    "bria-fibo": Family(bria_fibo, True, {**SMALL, "max_sequence_length": len(LETTERS)}),
}
