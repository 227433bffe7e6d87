"""Best-of-n and random search: the baselines of every search, which need no gradient."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from genalign.method.search.base import Inference, InferenceSettings, SearchState, candidate_seed
from genalign.types import Method


class SearchSettings(InferenceSettings):
    """Best-of-n and random search: the baselines that need no gradient."""

    presets: ClassVar = {"best-of-n": {"group": 8}, "random": {"group": 4, "propose": "nearby"}}

    propose: Literal["fresh", "nearby"] = "fresh"
    """Each candidate's noise: drawn anew (best-of-n), or near the best one so far (random search)."""
    radius: float = Field(0.3, gt=0, lt=1)
    """Nearby: share of new noise, x' = sqrt(1 - radius^2) best + radius z, which stays standard normal."""

    def build(self, folder: Path) -> Method:
        return Search(self)


class Search(Inference):
    """Best-of-n, and random search around the best noise so far (zero-order search, arXiv 2501.09732).

    Departs from the paper: a nearby noise keeps the standard normal's norm, x' = sqrt(1 - r^2) best + r z, where the
    paper adds a scaled direction. The best noise so far stays in the race.
    """

    def __init__(self, settings: SearchSettings) -> None:
        self.settings, self.name = settings, settings.name
        self.needs = frozenset({"reward"})

    @torch.no_grad()
    def _search(self, state: SearchState) -> None:
        state.plain_samples()
        prompts, seeds = state.prompts, list(state.seeds)  # state.seeds become those of the winners
        nearby = self.settings.propose == "nearby"
        best = state.differentiable.initial_noise(prompts, seeds) if nearby else None  # (R,*L)
        first = 1
        while count := min(self.settings.group, state.left(self.settings.budget)):
            rows = [row for row in range(len(prompts)) for _ in range(count)]
            drawn = [candidate_seed(seeds[r], prompts[r], first + k % count) for k, r in enumerate(rows)]
            if best is None:
                state.draw(rows, drawn)
            else:
                best = self._near(state, best, rows, drawn)
            first += count

    def _near(self, state: SearchState, best: Tensor, rows: list[int], drawn: list[int]) -> Tensor:
        """One round of random search; the best noises after it."""
        share, policy = self.settings.radius, state.differentiable
        fresh = policy.initial_noise([state.prompts[row] for row in rows], drawn)
        tried = (1 - share**2) ** 0.5 * best[rows] + share * fresh
        before = state.best.clone()
        total = state.draw_from(rows, tried)
        best = best.clone()
        for row in range(len(best)):
            own = [k for k, owner in enumerate(rows) if owner == row]
            k = max(own, key=lambda k: float(total[k]))
            if state.best[row] > before[row]:
                best[row] = tried[k]
        return best
