"""tiny-sd: a v-prediction UNet with a DDIM scheduler, distilled from tiny-flow, as a StableDiffusionPipeline."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from genalign.lab.bank import latent_bank
from genalign.lab.flow import TEXT_WIDTH, text_encoder
from genalign.lab.flow_matching import batch
from genalign.lab.reading import token_ids
from genalign.lab.teacher import read, teacher, velocity
from genalign.lab.text import shipped_tokenizer
from genalign.lab.world import web_caption
from genalign.training.fit import compiled, fit

SCENES = 49_152  # of the bank


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        transformer_layers_per_block=3,
    )


def build_sd(work: Path, steps: int = 9000, rows: int = 32) -> Any:
    """Distil the UNet from tiny-flow on web-like captions and noised training scenes; returns the pipeline.

    v-prediction (Salimans & Ho 2022, arXiv 2202.00512) with the betas of Stable Diffusion, rescaled so that the last
    step is pure noise (Lin et al. 2023, arXiv 2305.08891, algorithm 1). x = a x0 + s eps, divided by a + s, lies on
    tiny-flow's path at sigma = s / (a + s), so what tiny-flow says there, without guidance, is a target of less
    variance than the noise that was drawn. In every second row the time is drawn where objects take shape.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(5)
    told_by = teacher()
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
        rescale_betas_zero_snr=True,
    )
    bank = latent_bank(told_by.vae, work, "world", SCENES)
    forward = compiled(denoiser)

    def loss_of(step: int) -> Tensor:
        made = batch(bank, told_by.vae, web_caption, step, rows, seed=5)
        times = torch.randint(1000, (rows,), generator=made.generator)
        times[::2] = torch.randint(400, 950, (len(times[::2]),), generator=made.generator)
        noisy = scheduler.add_noise(made.clean, made.noise, times)
        target = as_v_prediction(told_by, scheduler, noisy, times, made.texts)
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            context = text(token_ids(tokenizer, made.texts)).last_hidden_state
            out = forward(noisy, times, context, return_dict=False)[0]
        return (out.float() - target).square().mean()

    fit(denoiser, loss_of, steps=steps, learning_rate=1e-3, state=work / "sd.safetensors", weight_decay=0.01)
    return StableDiffusionPipeline(
        vae=told_by.vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def as_v_prediction(told_by: Any, scheduler: Any, noisy: Tensor, times: Tensor, texts: list[str]) -> Tensor:
    """What tiny-flow would answer as v-prediction: a eps_hat - s x0_hat (B, 4, 16, 16), of noisy = a x0 + s eps."""
    a = scheduler.alphas_cumprod[times].sqrt().view(-1, 1, 1, 1)
    s = (1 - scheduler.alphas_cumprod[times]).sqrt().view(-1, 1, 1, 1)
    sigma, x = s / (a + s), noisy / (a + s)
    out = velocity(told_by.transformer, x, sigma.flatten(), read(told_by, texts))
    x0, eps = x - sigma * out, x + (1 - sigma) * out
    return cast("Tensor", a * eps - s * x0)
