"""Feynman-Kac steering: particles resampled on the reward of x0_hat, for rewards without gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genalign.method.search.base import Inference, InferenceSettings, SearchState, candidate_seed
from genalign.method.search.levels import Level, watch
from genalign.types import Method, sample_seed


class ParticleSettings(InferenceSettings):
    """Feynman-Kac steering: how often and how hard particles are selected. `group` is their number."""

    presets: ClassVar = {"fk": {"group": 4}}

    strength: float = Field(10.0, ge=0)
    """Lambda: a particle's weight is exp(strength x the rise of its reward since it was last selected)."""
    every: int = Field(2, ge=1)
    """Sampling steps between selections."""
    noise: float = Field(0.7, ge=0, le=1)
    """Noise of the sampler (cps), without which copies of a particle would stay equal."""

    def build(self, folder: Path) -> Method:
        return Particles(self)


class Particles(Inference):
    """Feynman-Kac steering (arXiv 2501.06848) with the difference potential: rewards need no gradient.

    A population of particles of one prompt walks together. Every few steps each x0_hat is decoded and scored, and the
    population is resampled with weights exp(strength * (score now - score at the last selection)), whose product over
    the way is exp(strength * reward of the sample). The best particle of as many populations as the budget allows is
    returned.

    Departs from the paper: (1) Steps are coefficients-preserving (cps), so that flows are steered as well.
    (2) Resampling is systematic. (3) A particle that cannot be scored has the others' mean weight. (4) The plain sample
    is one of the candidates.
    """

    def __init__(self, settings: ParticleSettings) -> None:
        self.settings, self.name = settings, settings.name
        self.needs = frozenset({"reward"})

    @torch.no_grad()
    def _search(self, state: SearchState) -> None:
        s, prompts, seeds = self.settings, state.prompts, list(state.seeds)
        state.plain_samples()
        with state.paying():
            levels = watch(state.differentiable, prompts[0], state.guidance, state.steps)
        chosen = range(s.every - 1, len(levels) - 1, s.every)  # never the last step: its x0_hat is the sample
        each = s.group * (state.plain + 2 * len(chosen))
        rows = [row for row in range(len(prompts)) for _ in range(s.group)]
        for population in range(max(1, state.left(s.budget, each))):
            first = population * s.group
            drawn = [candidate_seed(seeds[row], prompts[row], first + k % s.group) for k, row in enumerate(rows)]
            particles = _Particles(state, levels, rows, drawn, s, set(chosen))
            with state.paying():
                media = state.differentiable.generate_with_grad(
                    [prompts[row] for row in rows],
                    drawn,
                    grad_steps=0,
                    guidance=state.guidance,
                    steps=state.steps,
                    guide=particles.guide,
                )
            state.score(media, rows)


class _Particles:
    """Particles of several prompts on their way: rows of one prompt are adjacent, `group` each."""

    def __init__(
        self,
        state: SearchState,
        levels: Sequence[Level],
        rows: Sequence[int],
        seeds: Sequence[int],
        settings: ParticleSettings,
        chosen: set[int],
    ) -> None:
        self.state, self.levels, self.rows, self.settings, self.chosen = state, levels, rows, settings, chosen
        self.before = torch.zeros(len(rows))  # scores at the last selection
        prompts = [state.prompts[row] for row in rows]
        own = [sample_seed(seed, prompt.uid, -1) for seed, prompt in zip(seeds, prompts, strict=True)]
        self.noise = [torch.Generator().manual_seed(seed) for seed in own]
        self.draws = [torch.Generator().manual_seed(sample_seed(seed, -1, -1)) for seed in own[:: settings.group]]

    def guide(self, step: int, x: Tensor, out: Tensor, x0: Tensor) -> Tensor:
        """The output that makes the deterministic sampler land where selection and a stochastic step would."""
        if step == len(self.levels) - 1:
            return out
        now, then = self.levels[step], self.levels[step + 1]
        eps = now.eps(x, x0)
        if step in self.chosen:
            parents = self._select(x0)
            x0, eps = x0[parents], eps[parents]
        std = then.s * math.sin(self.settings.noise * math.pi / 2)
        drawn = torch.cat([torch.randn(1, *x.shape[1:], generator=generator) for generator in self.noise]).to(x)
        landing = then.a * x0 + math.sqrt(then.s**2 - std**2) * eps + std * drawn
        # x' = then.a x0 + then.s eps(x, x0) is linear in x0: the x0 that leads from x to the landing
        steered = (landing - then.s / now.s * x) / (then.a - then.s * now.a / now.s)
        return now.out(x, steered).to(out.dtype)

    def _select(self, x0: Tensor) -> Tensor:
        """Who is whose parent, (R,) int64."""
        scores = self.state.reward(
            [self.state.prompts[row] for row in self.rows], self.state.differentiable.decode(x0), None
        )
        self.state.spent.forward += 2 * len(self.rows)
        total = torch.where(scores.total_valid, scores.total.detach().double().cpu(), self.before.double())
        parents = []
        for at, draw in zip(range(0, len(self.rows), self.settings.group), self.draws, strict=True):
            mine = slice(at, at + self.settings.group)
            rise = self.settings.strength * (total - self.before.double())[mine]
            weights = log_weights(rise, scores.total_valid[mine].cpu()).softmax(0)
            parents.append(at + systematic(weights, float(torch.rand((), generator=draw))))
        index = torch.cat(parents)
        self.before = total.float()[index]
        return index.to(x0.device)


def log_weights(rise: Tensor, readable: Tensor) -> Tensor:
    """(N,): `rise` where it can be read, elsewhere the log of the readable ones' mean weight."""
    if not readable.any():
        return torch.zeros_like(rise)
    known = rise[readable]
    return torch.where(readable, rise, known.logsumexp(0) - math.log(len(known)))


def systematic(weights: Tensor, offset: float) -> Tensor:
    """Systematic resampling: (N,) int64 parents in order, particle i drawn floor or ceil of N weights[i] times.

    weights (N,) sum to 1; offset in [0,1), one for all.
    """
    places = (torch.arange(len(weights), dtype=torch.float64) + offset) / len(weights)
    edges = weights.double().cumsum(0)
    return torch.searchsorted(edges / edges[-1], places, right=True).clamp(max=len(weights) - 1)
