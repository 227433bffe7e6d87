"""Non-dominated fronts of several rewards, and below which spread scores count as equal."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE_FLOOR = 1e-4  # a spread below this share of the largest |score| is rounding, not signal


def front_ranks(values: Tensor, group: Tensor) -> Tensor:
    """(B,) fp64: how many fronts of its siblings come before a row's own, 0 where no sibling beats it.

    values (B,K), more is better; a row is beaten by one that is at least as good in every column and better in one. A
    row with a value that is not finite is in no front, and has rank NaN.
    """
    import moocore

    rank = torch.full((len(values),), torch.nan, dtype=torch.float64)
    finite = torch.isfinite(values).all(1)
    for name in torch.unique(group):
        rows = torch.nonzero((group == name) & finite).flatten()
        if len(rows):
            points = values[rows].double().cpu().numpy()
            rank[rows] = torch.from_numpy(moocore.pareto_rank(points, maximise=True)).double()
    return rank
