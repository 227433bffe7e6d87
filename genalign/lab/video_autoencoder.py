"""The autoencoder of tiny-video, trained by reconstruction on rendered clips, and how large its latents are."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.autoencoder import difference, off_unit_size
from genalign.lab.bank import KINDS
from genalign.lab.video import NOISE, autoencoder
from genalign.precision import autocast
from genalign.training.fit import fit

OF_SQUARES, OF_OBJECTS = 4.0, 3.0  # weights of squared differences, and in these of what is no background


def clips(seed: int, step: int, count: int) -> Tensor:
    """`count` rendered clips of the training split, (B, 3, 9, 48, 48) in [-1, 1]; a function of seed and step."""
    rng, moving = np.random.default_rng((seed, step)), KINDS["moves"]
    rendered = [moving.render(moving.lay_out(rng), rng) for _ in range(count)]
    return torch.from_numpy(np.stack(rendered)).permute(moving.axes).contiguous().mul(2).sub(1)


def weights(wanted: Tensor) -> Tensor:
    """(B, 1, F, H, W): 1 of the background, the median of a clip (B, 3, F, H, W), and OF_OBJECTS of the rest."""
    ground = wanted.flatten(2).median(dim=2).values[..., None, None, None]
    return 1 + (OF_OBJECTS - 1) * ((wanted - ground).abs().amax(dim=1, keepdim=True) > 0.1)


def build_autoencoder(work: Path, steps: int, rows: int = 8, seed: int = 11) -> Any:
    """Train by L1, edges and motion on samples of the posterior, so that a denoiser's small errors decode well; and by
    squares, since to all of these an empty scene is better than one with a blurred object."""
    vae = autoencoder()

    def loss_of(step: int) -> Tensor:
        wanted = clips(seed, step, rows)
        noise = torch.Generator().manual_seed(step)
        with autocast():
            mean = vae.encode(wanted).latent_dist.mean.float()
            decoded = vae.decode(mean + NOISE * torch.randn(mean.shape, generator=noise)).sample.float()
        squares = OF_SQUARES * (weights(wanted) * (decoded - wanted).square()).mean()
        return difference(decoded, wanted) + squares + 0.02 * off_unit_size(mean)

    state = work / "autoencoder.safetensors"
    fit(vae, loss_of, steps=steps, learning_rate=1e-3, muon=0.02, state=state, weight_decay=0.0)
    return vae.requires_grad_(False)


def measure_latents(vae: Any, latents: Tensor) -> None:
    """Put mean and deviation of each channel of raw latents (N, C, F, H, W) into the autoencoder's configuration."""
    flat = latents.transpose(0, 1).flatten(1).double()
    vae.register_to_config(latents_mean=flat.mean(dim=1).tolist(), latents_std=flat.std(dim=1).tolist())


@torch.no_grad()
def reconstructed(vae: Any, pixels: Tensor) -> tuple[Tensor, float]:
    """Clips (B, 3, 9, 48, 48) in [-1, 1] there and back, and the PSNR of their mean squared error, in decibels, the
    range being 2."""
    parts = [vae.decode(vae.encode(some).latent_dist.mode()).sample for some in pixels.split(32)]
    decoded = torch.cat(parts)
    return decoded, float(10 * torch.log10(4 / (decoded - pixels).square().mean()))
