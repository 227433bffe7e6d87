"""The weighted harmonic mean of rewards: near 0 where any one of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genalign.reward.algebra import _Combination, _lost, _side_by_side
from genalign.reward.base import Scope, digest, widest
from genalign.types import Media, Prompt, Reward, Scores, UsageError

FLOOR = 1e-8  # what a part at 0 or below counts as: the mean is 0, and keeps a gradient


class Harmonic(_Combination):
    """1 / sum(l_i / r_i), l the weights as shares: lambda-harmonic reward of subject and text (RPO, arXiv 2407.12164).

    parts: (reward, weight) pairs, or rewards of weight 1. Each r_i is a part's total, meant in [0,1] (a cosine: scale
    0.5, offset 0.5). First column: the mean; then the parts, for the log. A row counts where all its parts do.

    Departs from the paper: a part at or below 0 makes the mean 0, where the paper's cosines cannot be.
    """

    def __init__(self, parts: Sequence[Reward | tuple[Reward, float]], name: str = "harmonic") -> None:
        pairs = [part if isinstance(part, tuple) else (part, 1.0) for part in parts]
        if not pairs or any(weight <= 0 for _, weight in pairs):
            raise UsageError(f"the parts of harmonic reward {name!r} need weights above 0, and there must be one")
        super().__init__([part for part, _ in pairs])
        self.name = name
        total = sum(weight for _, weight in pairs)
        self.shares = tuple(weight / total for _, weight in pairs)

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.name, *self.columns)

    @property
    def weights(self) -> tuple[float, ...]:
        return (1.0, *(0.0 for _ in self.columns))

    @property
    def looks_at(self) -> Scope:
        return widest(part.looks_at for part in self.parts)

    @property
    def version(self) -> str:
        return digest("harmonic", self.name, self.shares, [part.version for part in self.parts])

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        told = self._ask(prompts, media, group)
        totals = torch.stack([scores.total for scores in told], 1)  # (B,P)
        readable = torch.stack([scores.total_valid for scores in told], 1).all(1)
        lost = torch.stack([_lost(scores) for scores in told], 1).any(1)
        mean = 1 / (torch.tensor(self.shares) / totals.clamp(min=FLOOR)).sum(1)
        mean = torch.where(readable, mean, 0.0)
        parts = _side_by_side(self.columns, told)
        others = parts.confidence
        return replace(
            parts,
            names=self.aspects,
            values=torch.cat([mean[:, None], parts.values], 1),
            valid=torch.cat([readable[:, None], parts.valid], 1),
            failed=torch.cat([lost[:, None], parts.failed], 1),
            total=mean,
            total_valid=readable,
            weights=torch.tensor(self.weights),
            confidence=None if others is None else torch.cat([readable[:, None].float(), others], 1),
            std=None,
        )
