"""Velocity matching on captioned latents, of scenes or of clips: what stages on true and on web-like captions share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.bank import Bank, normalised
from genalign.lab.reading import NAMELESS
from genalign.lab.teacher import Text, read, velocity
from genalign.lab.world import Facts, caption, sample_facts
from genalign.training.fit import compiled, fit

Captioner = Callable[[Facts, np.random.Generator], str]
UNCONDITIONAL = 0.1  # share of captions left empty, for guidance


def true_caption(facts: Facts, rng: np.random.Generator) -> str:
    return caption({**facts, "background": None} if rng.random() < NAMELESS else facts, rng)


def even(steps: int) -> list[float]:
    """Noise levels in equal steps from 1, before the scheduler shifts them."""
    return [1 - step / steps for step in range(steps)]


def draw_sigmas(
    rows: int, generator: torch.Generator, mean: float = 1.4, deviation: float = 1.5, every: int = 2
) -> Tensor:
    """Noise levels (rows,): logit-normal (Esser et al. 2024, arXiv 2403.03206, section 3.1, where mean and deviation
    are 0 and 1), and uniform in [0.9, 1] in one row of `every`: layout is a mean over many latents, so a noisy latent
    shows it already below sigma 0.9, and only above can text decide it."""
    sigma = torch.sigmoid(mean + deviation * torch.randn(rows, generator=generator))
    sigma[::every] = 1 - 0.1 * torch.rand(len(sigma[::every]), generator=generator)
    return sigma


@dataclass(frozen=True)
class World:
    """What a flow model draws, and how its pipeline draws it.

    facts: of a random scene or clip of the training split; caption: what is true of it.
    read: what the pipeline gives its transformer of texts, with so many zero tokens behind them.
    zeros: how many these are as the lab calls the pipeline, and where its call is left at its defaults.
    latents: (C, ...) of one sample. set_steps: puts so many steps, evenly spaced before its shift, into a scheduler.
    times: what the transformer is given as the time of noise level 1. sigmas: noise levels of a training batch.
    """

    facts: Callable[[np.random.Generator], Facts]
    caption: Captioner
    read: Callable[[Any, list[str], int], Text]
    zeros: tuple[int, int]
    latents: tuple[int, ...]
    set_steps: Callable[[Any, int], None]
    times: float = 1000.0
    sigmas: Callable[[int, torch.Generator], Tensor] = draw_sigmas

    def tokens(self, pipeline: Any, texts: list[str], step: int) -> Text:
        """Of texts in a training step; one batch in 24 as the call's defaults have it, so that both layouts draw."""
        return self.read(pipeline, texts, self.zeros[step % 24 == 7])


SCENES = World(
    facts=lambda rng: sample_facts(rng, "train"),
    caption=true_caption,
    read=read,
    zeros=(1, 256),  # of the T5 that is missing
    latents=(4, 16, 16),
    set_steps=lambda scheduler, steps: scheduler.set_timesteps(sigmas=even(steps)),
)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """One value a row (B,), as (B, 1, ...) beside samples."""
    return values.view(-1, *[1] * (like.ndim - 1))


def batch(
    bank: Bank, vae: Any, captioner: Captioner, step: int, rows: int, seed: int
) -> tuple[Tensor, Tensor, list[str], torch.Generator]:
    """Normalised clean latents and noise, (rows, C, ...) fp32, their captions, and a generator for the times."""
    latents, facts = bank
    rng = np.random.default_rng((seed, step))
    index = rng.integers(len(facts), size=rows)
    texts = ["" if rng.random() < UNCONDITIONAL else captioner(facts[i], rng) for i in index]
    clean = normalised(vae, latents[torch.from_numpy(index)].float())
    generator = torch.Generator().manual_seed(step)
    return clean, torch.randn(clean.shape, generator=generator), texts, generator


def match(
    pipeline: Any, bank: Bank, captioner: Captioner, state: Path, *, steps: int, learning_rate: float, seed: int,
    rows: int = 48, ema_decay: float = 0.999, muon: float = 0.0, world: World = SCENES,
) -> None:  # fmt: skip
    """Velocity matching of the pipeline's transformer on a bank's latents, captioned anew each time they are drawn."""
    student = compiled(pipeline.transformer)

    def loss_of(step: int) -> Tensor:
        clean, noise, texts, generator = batch(bank, pipeline.vae, captioner, step, rows, seed)
        sigma = world.sigmas(rows, generator)
        noisy = torch.lerp(clean, noise, per_row(sigma, clean))
        text = world.tokens(pipeline, texts, step)
        return (velocity(student, noisy, sigma, text, world.times) - (noise - clean)).square().mean()

    pipeline.transformer.requires_grad_(True)
    fit(
        pipeline.transformer, loss_of, steps=steps, learning_rate=learning_rate, muon=muon, state=state,
        ema_decay=ema_decay,
    )  # fmt: skip
    pipeline.transformer.requires_grad_(False)
