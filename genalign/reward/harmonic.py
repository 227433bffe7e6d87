"""The weighted harmonic mean of rewards: near 0 where any one of them is."""

from __future__ import annotations

import torch
from torch import Tensor

from genalign.reward.means import Mean

FLOOR = 1e-8  # what a part at 0 or below counts as: the mean is 0, and keeps a gradient


class Harmonic(Mean):
    """1 / sum(l_i / r_i), l the weights as shares: lambda-harmonic reward of subject and text (RPO, arXiv 2407.12164).

    parts: (reward, weight) pairs, or rewards of weight 1. Each r_i is a part's total, meant in [0,1] (a cosine: scale
    0.5, offset 0.5). First column: the mean; then the parts, for the log. A row counts where all its parts do.

    Departs from the paper: a part at or below 0 makes the mean 0, where the paper's cosines cannot be.
    """

    def mean(self, totals: Tensor) -> Tensor:
        return 1 / (torch.tensor(self.shares) / totals.clamp(min=FLOOR)).sum(1)
