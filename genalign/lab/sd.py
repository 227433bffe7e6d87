"""tiny-sd: a v-prediction UNet with a DDIM scheduler, as a StableDiffusionPipeline."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genalign.lab.flow import TEXT_WIDTH, latent_bank, read_tokens, text_encoder, web_batch
from genalign.lab.text import shipped_tokenizer
from genalign.lab.train import compiled, fit


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 112),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        transformer_layers_per_block=1,
    )


def build_sd(work: Path, vae: Any, steps: int = 6000, rows: int = 32) -> Any:
    """Train the UNet on web-like captions, read by the frozen tower of tiny-clip; returns the pipeline.

    v-prediction (Salimans & Ho 2022, arXiv 2202.00512) with the betas of Stable Diffusion.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(5)
    tokenizer = shipped_tokenizer()
    text, denoiser = text_encoder(tokenizer, projected=False), unet()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )
    bank, scale = latent_bank(vae, work), float(vae.config.scaling_factor)

    forward = compiled(denoiser)

    def loss_of(step: int) -> Tensor:
        clean, noise, texts, generator = web_batch(bank, scale, step, rows, seed=5)
        times = torch.randint(1000, (rows,), generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = text(read_tokens(tokenizer, texts)).last_hidden_state
            velocity = forward(scheduler.add_noise(clean, noise, times), times, context, return_dict=False)[0]
        return cast("Tensor", (velocity.float() - scheduler.get_velocity(clean, noise, times)).square().mean())

    fit(denoiser, loss_of, steps=steps, learning_rate=8e-4, state=work / "sd.safetensors", weight_decay=0.01)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
