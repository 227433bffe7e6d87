"""Means that one bad part can pull down: geometric, its signed kin, harmonic, and the least of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genalign.reward.combine.columns import totals
from genalign.reward.combine.combination import Summary, weighted
from genalign.types import Media, Prompt, Reward, Scores, UsageError

FLOOR = 1e-8  # what a part at 0 or below counts as: the mean is 0, and keeps a gradient
EPSILON = 1e-6  # inside the root: the slope of a geometric mean at 0 is steep, not infinite


class Mean(Summary):
    """A mean of the parts' totals. First column: the mean; then the parts. A row counts where all its parts do.

    parts: (reward, weight) pairs, or rewards of weight 1; the weights are taken as shares.

    Raises:
        UsageError: no part, or a weight that is not above 0.
    """

    def __init__(self, parts: Sequence[Reward | tuple[Reward, float]], name: str = "") -> None:
        kind = type(self).__name__.lower()
        rewards, weights = weighted(parts)
        if not weights or any(weight <= 0 for weight in weights):
            raise UsageError(f"the parts of {kind} reward {name or kind!r} need weights above 0, and there must be one")
        super().__init__(rewards, name or kind)
        self.shares = self.settings = tuple(weight / sum(weights) for weight in weights)

    def mean(self, totals: Tensor) -> Tensor:
        """(B,P) -> (B,), all entries finite; with grad where they have it."""
        raise NotImplementedError

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        values, valid, failed = totals(scores)
        return self.summarise(scores, self.mean(values), valid.all(1), failed.any(1))


class Geometric(Mean):
    """prod (r_i + eps)^l_i - eps, l the weights as shares: EditScore's overall score, of any number of parts.

    The epsilon keeps the gradient finite at 0, and the result between the least part and the arithmetic mean. A part
    below 0 counts as 0.
    """

    def mean(self, totals: Tensor) -> Tensor:
        return geometric(totals.clamp(min=0), torch.tensor(self.shares))


class Harmonic(Mean):
    """1 / sum(l_i / r_i), l the weights as shares: lambda-harmonic reward of subject and text (RPO, arXiv 2407.12164).

    parts: (reward, weight) pairs, or rewards of weight 1. Each r_i is a part's total, meant in [0,1] (a cosine: scale
    0.5, offset 0.5). First column: the mean; then the parts, for the log. A row counts where all its parts do.

    Departs from the paper: a part at or below 0 makes the mean 0, where the paper's cosines cannot be.
    """

    def mean(self, totals: Tensor) -> Tensor:
        return 1 / (torch.tensor(self.shares) / totals.clamp(min=FLOOR)).sum(1)


class KRC(Mean):
    """Kinesthetic reward combination (Lucy-SKG): a geometric mean of |r_i|, and one sign for all.

    The sign is + only where every part is >= 0, a logical AND: two parts below 0 do not make a good one. Meant for
    parts in [-1,1].

    Departs from the paper's code: the rule of its three-part form is used for any number of parts; its two-part form
    takes the sign of the product.
    """

    def mean(self, totals: Tensor) -> Tensor:
        sign = torch.where((totals >= 0).all(1), 1.0, -1.0).to(totals)
        return sign * geometric(totals.abs(), torch.tensor(self.shares))


class Min(Mean):
    """The least of the parts: as good as the worst of them (EditScore's aspects)."""

    def __init__(self, parts: Sequence[Reward], name: str = "min") -> None:
        super().__init__(list(parts), name)

    def mean(self, totals: Tensor) -> Tensor:
        return totals.amin(1)


def geometric(values: Tensor, shares: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Weighted geometric mean of values (B,P) >= 0, shifted by epsilon and back: (B,)."""
    return ((values + epsilon).log() @ shares.to(values)).exp() - epsilon
