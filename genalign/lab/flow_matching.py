"""Velocity matching on captioned latents, of scenes or of clips: what stages on true and on web-like captions share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.lab.bank import Bank, normalised
from genalign.lab.reading import NAMELESS
from genalign.lab.teacher import Text, read, velocity
from genalign.lab.world import Facts, caption, sample_facts
from genalign.training.fit import compiled, fit

Captioner = Callable[[Facts, np.random.Generator], str]
UNCONDITIONAL = 0.1  # share of captions left empty, for guidance
EMPTY = 0.2  # weight of a place that shows nothing


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
    things: how many classes each of the columns of a bank's `shown` has, the last of them nothing. telling: the weight
    of telling them.
    """

    facts: Callable[[np.random.Generator], Facts]
    caption: Captioner
    read: Callable[[Any, list[str], int], Text]
    zeros: tuple[int, int]
    latents: tuple[int, ...]
    set_steps: Callable[[Any, int], None]
    times: float = 1000.0
    sigmas: Callable[[int, torch.Generator], Tensor] = draw_sigmas
    things: tuple[int, ...] = ()
    telling: float = 0.1

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


@dataclass(frozen=True)
class Batch:
    """Normalised clean latents and noise, (rows, C, ...) fp32, their captions, what is shown where, (rows, places) or
    with a column for each of the world's `things`, if the bank tells it, and a generator for the times."""

    clean: Tensor
    noise: Tensor
    texts: list[str]
    shown: Tensor | None
    generator: torch.Generator


def batch(bank: Bank, vae: Any, captioner: Captioner, step: int, rows: int, seed: int) -> Batch:
    rng = np.random.default_rng((seed, step))
    index = rng.integers(len(bank.facts), size=rows)
    texts = ["" if rng.random() < UNCONDITIONAL else captioner(bank.facts[i], rng) for i in index]
    chosen = torch.from_numpy(index)
    clean = normalised(vae, bank.latents[chosen].float())
    generator = torch.Generator().manual_seed(step)
    noise = torch.randn(clean.shape, generator=generator)
    return Batch(clean, noise, texts, None if bank.shown is None else bank.shown[chosen].long(), generator)


class Told(nn.Module):
    """What is where, told from the states of a transformer's middle block, so that what it draws depends sooner on the
    words of the caption than squared differences of latents alone would have it.

    Representation alignment (REPA, Yu et al. 2024, arXiv 2410.06940, section 3). Departs from the paper: the states are
    not drawn to those of a pretrained encoder, since the world itself knows what it shows.
    """

    def __init__(self, transformer: Any, world: World) -> None:
        super().__init__()
        width = transformer.proj_out.in_features
        self.transformer, self.things, self.telling = transformer, world.things, world.telling
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, sum(world.things))
        )
        self.states: list[Tensor] = []
        middle = transformer.blocks[len(transformer.blocks) // 2]
        self.hook = middle.register_forward_hook(lambda module, given, states: self.states.append(states))

    def loss(self, shown: Tensor) -> Tensor:
        """Of the forward pass before it; shown: (rows, places), or with a column for each of `things`."""
        logits = self.head(self.states.pop().float()).split(self.things, dim=-1)
        columns = shown.view(*shown.shape[:2], len(self.things)).unbind(-1)
        wrong = [_wrong(given, right) for given, right in zip(logits, columns, strict=True)]
        return self.telling * torch.stack(wrong).sum()


def _wrong(logits: Tensor, right: Tensor) -> Tensor:
    """Cross entropy of (rows, places, classes) against (rows, places), whose last class is nothing."""
    importance = torch.ones(logits.shape[-1])
    importance[-1] = EMPTY
    return F.cross_entropy(logits.flatten(0, 1), right.flatten(), importance)


def match(
    pipeline: Any, bank: Bank, captioner: Captioner, state: Path, *, steps: int, learning_rate: float, seed: int,
    rows: int = 48, ema_decay: float = 0.999, muon: float = 0.0, world: World = SCENES,
) -> None:  # fmt: skip
    """Velocity matching of the pipeline's transformer on a bank's latents, captioned anew each time they are drawn."""
    told = Told(pipeline.transformer, world) if world.things and bank.shown is not None else None
    student = compiled(pipeline.transformer)

    def loss_of(step: int) -> Tensor:
        made = batch(bank, pipeline.vae, captioner, step, rows, seed)
        sigma = world.sigmas(rows, made.generator)
        noisy = torch.lerp(made.clean, made.noise, per_row(sigma, made.clean))
        text = world.tokens(pipeline, made.texts, step)
        loss = (velocity(student, noisy, sigma, text, world.times) - (made.noise - made.clean)).square().mean()
        if told is not None:
            assert made.shown is not None
            loss = loss + told.loss(made.shown)
        return loss

    pipeline.transformer.requires_grad_(True)
    fit(
        told or pipeline.transformer, loss_of, steps=steps, learning_rate=learning_rate, muon=muon, state=state,
        ema_decay=ema_decay,
    )  # fmt: skip
    pipeline.transformer.requires_grad_(False)
    if told is not None:
        told.hook.remove()
