"""The autoencoder that tiny-flow and tiny-sd share: AutoencoderTiny, 64x64x3 <-> 16x16x4."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.world import place, render, sample_facts
from genalign.precision import autocast
from genalign.training.fit import fit

LATENT_CHANNELS = 4


def scenes(seed: int, count: int, split: str | None = "train") -> tuple[Tensor, list[dict]]:
    """`count` rendered scenes, (B, 3, 64, 64) in [0, 1], and their facts; a function of `seed` alone."""
    rng = np.random.default_rng(seed)
    facts = [sample_facts(rng, split) for _ in range(count)]
    images = np.stack([render(place(f, rng), rng) for f in facts])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), facts


def difference(decoded: Tensor, wanted: Tensor) -> Tensor:
    """L1 of pictures (B, C, H, W) or clips (B, C, F, H, W), and of their edges; of clips also of what moves."""
    axes = range(2, wanted.ndim)
    edges = sum((decoded.diff(dim=d) - wanted.diff(dim=d)).abs().mean() for d in axes)
    return (decoded - wanted).abs().mean() + edges


def off_unit_size(latents: Tensor) -> Tensor:
    """How far each channel of latents (B, C, ...) is from mean 0 and mean square 1."""
    others = (0, *range(2, latents.ndim))
    return (latents.square().mean(dim=others) - 1).square().mean() + latents.mean(dim=others).square().mean()


def build_autoencoder(work: Path, steps: int = 5000, seed: int = 1) -> Any:
    """Train on rendered scenes: L1 + edges, and noise on the latents so that a denoiser's small errors decode well."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 2, 0),
        latent_channels=LATENT_CHANNELS,
    ).to(memory_format=torch.channels_last)

    def loss_of(step: int) -> Tensor:
        images, _ = scenes(seed * 10_000_000 + step, 16)
        noise = torch.Generator().manual_seed(step)
        with autocast():
            latents = vae.encoder(images.mul(2).sub(1).contiguous(memory_format=torch.channels_last)).float()
            shaken = latents + 0.08 * torch.randn(latents.shape, generator=noise)
            decoded = vae.decoder(shaken).float().add(1).div(2)
        # the pull towards unit size keeps the latents inside the decoder's tanh clamp of +-3
        return difference(decoded, images) + 0.02 * off_unit_size(latents)

    fit(vae, loss_of, steps=steps, learning_rate=1.5e-3, state=work / "autoencoder.safetensors", weight_decay=0.0)
    return vae
