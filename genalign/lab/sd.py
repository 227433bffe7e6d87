"""tiny-sd: a v-prediction UNet with a DDIM scheduler, distilled from tiny-flow, as a StableDiffusionPipeline."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from genalign.lab.few_steps import SIGMAS
from genalign.lab.flow import TEXT_WIDTH
from genalign.lab.flow_matching import UNCONDITIONAL
from genalign.lab.reading import token_ids
from genalign.lab.teacher import teacher
from genalign.lab.turbo import pair_bank
from genalign.precision import autocast
from genalign.training.fit import compiled, fit


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
    )


def text_encoder(tower: Any) -> Any:
    """The text tower of tiny-flow without its last layer and its projection: tiny-flow reads the states before that
    layer, a StableDiffusionPipeline the last ones."""
    from transformers import CLIPTextModel

    config = copy.deepcopy(tower.config)
    config.num_hidden_layers -= 1
    shorter = CLIPTextModel(config)
    named = {name.removeprefix("text_model."): tensor for name, tensor in tower.state_dict().items()}
    shorter.load_state_dict({name: named[name.removeprefix("text_model.")] for name in shorter.state_dict()})
    return shorter.eval().requires_grad_(False)


def build_sd(work: Path, steps: int = 6_000, samples: int = 24_576, rows: int = 48, seed: int = 5) -> Any:
    """Fit the UNet to what tiny-flow draws in its three steps on true captions of training scenes, half-heartedly as it
    draws them; returns the pipeline.

    v-prediction (Salimans & Ho 2022, arXiv 2202.00512) with the betas of Stable Diffusion, rescaled so that the last
    step is pure noise (Lin et al. 2023, arXiv 2305.08891, algorithm 1). In every second row the time is drawn where
    objects take shape.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    told_by = teacher()
    text, denoiser = text_encoder(told_by.text_encoder), unet()
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
    _, drawn, captions = pair_bank(told_by, work, samples, sigmas=SIGMAS)
    forward = compiled(denoiser)

    def loss_of(step: int) -> Tensor:
        rng, draw = np.random.default_rng((seed, step)), torch.Generator().manual_seed(step)
        index = rng.integers(len(drawn), size=rows)
        texts = ["" if rng.random() < UNCONDITIONAL else captions[i] for i in index]
        clean = drawn[torch.from_numpy(index)]
        noise = torch.randn(clean.shape, generator=draw)
        times = torch.randint(1000, (rows,), generator=draw)
        times[::2] = torch.randint(400, 950, (len(times[::2]),), generator=draw)
        with autocast(), sdpa_kernel(SDPBackend.MATH):
            context = text(token_ids(told_by.tokenizer, texts)).last_hidden_state
            out = forward(scheduler.add_noise(clean, noise, times), times, context, return_dict=False)[0]
        return (out.float() - scheduler.get_velocity(clean, noise, times)).square().mean()

    state = work / "sd.safetensors"
    fit(denoiser, loss_of, steps=steps, learning_rate=1e-3, muon=0.02, state=state, weight_decay=0.01)
    return StableDiffusionPipeline(
        vae=told_by.vae,
        text_encoder=text,
        tokenizer=told_by.tokenizer,
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
