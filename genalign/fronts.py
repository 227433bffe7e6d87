"""Non-dominated fronts of several rewards, and below which spread scores count as equal."""

from __future__ import annotations

import torch
from torch import Tensor

# A spread below this share of the largest |score| is rounding, not signal. Scores are fp32: eight units in the last
# place are more than batch-dependent kernels leave between equal samples, and less than a spread that fp32 can carry.
RELATIVE_FLOOR = 8 * torch.finfo(torch.float32).eps
NEAR, SHARE_OF_SPAN = 1e-4, 0.1  # see tied


def tied(gap: Tensor, peak: Tensor, span: Tensor) -> Tensor:
    """Whether two siblings count as equally good: their scores are closer than 1e-4 of the larger |score|.

    gap >= 0 between the two, peak their larger |score|, span the best minus the worst score of their group; all fp64,
    of one shape. Where the span is small beside the scores (an offset was added to them), a tenth of the span is the
    bound instead; what fp32 cannot tell apart is always equal.
    """
    return gap <= torch.minimum(NEAR * peak, SHARE_OF_SPAN * span).maximum(RELATIVE_FLOOR * peak)


def spans(total: Tensor, readable: Tensor, group: Tensor) -> Tensor:
    """(B,) fp64: the best minus the worst readable total of each row's group, 0 where none can be read."""
    _, index = torch.unique(group, return_inverse=True)
    groups = int(index.max()) + 1 if len(index) else 0
    best = total.new_full((groups,), -torch.inf, dtype=torch.float64)
    worst = total.new_full((groups,), torch.inf, dtype=torch.float64)
    best = best.scatter_reduce(0, index[readable], total[readable].double(), "amax")
    worst = worst.scatter_reduce(0, index[readable], total[readable].double(), "amin")
    return (best - worst).clamp(min=0.0)[index]


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
