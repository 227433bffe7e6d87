"""Velocity matching of tiny-flow on captioned latents: what its stages on true and on web-like captions share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.bank import Bank
from genalign.lab.reading import NAMELESS
from genalign.lab.teacher import read, velocity
from genalign.lab.world import Facts, caption
from genalign.training.fit import compiled, fit

Captioner = Callable[[Facts, np.random.Generator], str]
UNCONDITIONAL = 0.1  # share of captions left empty, for guidance


def true_caption(facts: Facts, rng: np.random.Generator) -> str:
    return caption({**facts, "background": None} if rng.random() < NAMELESS else facts, rng)


def draw_sigmas(rows: int, generator: torch.Generator) -> Tensor:
    """Noise levels (rows,): logit-normal, mean 1.4 and deviation 1.5 (Esser et al. 2024, arXiv 2403.03206, section 3.1,
    where they are 0 and 1) in every second row, uniform in [0.9, 1] in the others: layout is a mean over many latents,
    so a noisy latent shows it already below sigma 0.9, and only above can text decide it."""
    sigma = torch.sigmoid(1.4 + 1.5 * torch.randn(rows, generator=generator))
    sigma[::2] = 1 - 0.1 * torch.rand(len(sigma[::2]), generator=generator)
    return sigma


def batch(
    bank: Bank, scale: float, captioner: Captioner, step: int, rows: int, seed: int
) -> tuple[Tensor, Tensor, list[str], torch.Generator]:
    """Scaled clean latents and noise, (rows, 4, 16, 16) fp32, their captions, and a generator for the times."""
    latents, facts = bank
    rng = np.random.default_rng((seed, step))
    index = rng.integers(len(facts), size=rows)
    texts = ["" if rng.random() < UNCONDITIONAL else captioner(facts[i], rng) for i in index]
    clean = latents[torch.from_numpy(index)].float() * scale
    generator = torch.Generator().manual_seed(step)
    return clean, torch.randn(clean.shape, generator=generator), texts, generator


def match(
    pipeline: Any, bank: Bank, captioner: Captioner, state: Path, *, steps: int, learning_rate: float, seed: int,
    rows: int = 48, ema_decay: float = 0.999,
) -> None:  # fmt: skip
    """Velocity matching of the pipeline's transformer on a bank's latents, captioned anew each time they are drawn.

    One batch in 24 carries the 256 zero tokens that the pipeline appends by default where it has no T5, so that both
    layouts draw.
    """
    scale = float(pipeline.vae.config.scaling_factor)
    student = compiled(pipeline.transformer)

    def loss_of(step: int) -> Tensor:
        clean, noise, texts, generator = batch(bank, scale, captioner, step, rows, seed)
        sigma = draw_sigmas(rows, generator)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1))
        text = read(pipeline, texts, zeros=256 if step % 24 == 7 else 1)
        return (velocity(student, noisy, sigma, text) - (noise - clean)).square().mean()

    pipeline.transformer.requires_grad_(True)
    fit(pipeline.transformer, loss_of, steps=steps, learning_rate=learning_rate, state=state, ema_decay=ema_decay)
    pipeline.transformer.requires_grad_(False)
