"""Groups among groups: what a prompt's standing in the batch adds to advantages that only compare siblings.

Letters: B rows, G groups. Statistics are taken in fp64.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from genalign.fronts import RELATIVE_FLOOR, tied
from genalign.types import Scores

OUTLIER = 3.0  # std from the mean


def consistency_blend(
    advantage: Tensor,
    counted: Tensor,
    scores: Scores,
    group: Tensor,
    sharpness: float = 20.0,
    threshold: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """w A + (1 - w) G and the rows it counts for: groups that agree learn from how they did among the groups (COPO).

    G is the group's mean total, centred and divided by the unbiased std over the groups; w = sigmoid(sharpness
    (H - threshold)), H the entropy of the distinct totals in the group, as a share of the log of its size. So a group
    whose samples all got the same, from which A learns nothing, is pushed as a whole.

    Departs from the paper: H is a share, not nats, since 1.5 nats need five distinct outcomes; outcomes differ
    by their total. Groups that all did alike stay out.
    """
    names, index = torch.unique(group, return_inverse=True)
    total, readable = torch.where(scores.total_valid, scores.total, 0.0).double(), scores.total_valid
    entropy, mean, known = (torch.zeros(len(names), dtype=torch.float64) for _ in range(3))
    for g in range(len(names)):
        own = total[(index == g) & readable].sort().values
        if len(own):
            mean[g], known[g] = own.mean(), 1.0
            same = tied(own.diff(), own.abs().max(), own[-1] - own[0])  # own is sorted
            outcome = torch.cumsum(~same, 0)
            share = torch.bincount(torch.cat([outcome.new_zeros(1), outcome])).double() / len(own)
            entropy[g] = -(share * share.log()).sum() / math.log(max(len(own), 2))
    z = _standing(mean, known.bool(), _peak(scores))
    local = torch.sigmoid(sharpness * (entropy - threshold))[index]
    moved = readable & bool(z.any())
    blend = local * advantage.double() + (1 - local) * torch.where(moved, z[index], 0.0)
    return torch.where(counted | moved, blend, 0.0).float(), counted | moved


def difficulty_scale(scores: Scores, group: Tensor, towards: Literal["hard", "easy"] = "hard") -> Tensor:
    """(B,) fp32, about 1: how much a row's advantage counts, by its prompt (GRPO-S, "Inverse Reinforcement Learning
    with Dynamic Reward Scaling for LLM Alignment").

    sigmoid(d) / sigmoid(mean d) times sigmoid(g) / sigmoid(mean g): d how hard the prompt is, g its reward gap. Both
    are z-scores over the groups, of minus the mean total ("easy": plus), and of the best total minus the worst; a gap
    more than three std from the mean is an outlier and weighs 1.

    Departs from the paper: it takes d and g from demonstrations (likeness and distance to them), which are not needed.
    """
    names, index = torch.unique(group, return_inverse=True)
    mean, gap, known = (torch.zeros(len(names), dtype=torch.float64) for _ in range(3))
    for g in range(len(names)):
        own = scores.total[(index == g) & scores.total_valid].double()
        if len(own):
            mean[g], gap[g], known[g] = own.mean(), own.max() - own.min(), 1.0
    hardness = _standing(-mean if towards == "hard" else mean, known.bool(), _peak(scores))
    spread = _standing(gap, known.bool(), _peak(scores))  # a gap is as exact as the scores that it is between
    by_gap = torch.where(spread.abs() > OUTLIER, 1.0, 2 * torch.sigmoid(spread))
    return (2 * torch.sigmoid(hardness) * by_gap)[index].float()  # the mean of a z-score is 0, its sigmoid 1/2


def budget_lead(scores: Scores, group: Tensor, budget: Tensor, longest: float, height: float) -> Tensor:
    """(B,) fp32: how far the siblings of one budget stand, on average, from what their budget is worth (HBPO).

    The mean total of the row's siblings with its budget b, minus height cos(pi b / (2 longest)), which the reward
    `budget` of the same longest and height never exceeds. Added to a normalised advantage, it pushes down as a whole
    those who fail within their budget. budget: (B,), NaN for none; then, and where the total cannot be read, it is 0.

    Departs from the paper's code: it adds the term twice.
    """
    lead = torch.zeros(len(group), dtype=torch.float64)
    counted = scores.total_valid & ~budget.isnan()
    for g, b in {*zip(group[counted].tolist(), budget[counted].tolist(), strict=True)}:
        own = counted & (group == g) & (budget == b)
        lead[own] = scores.total[own].double().mean() - height * math.cos(math.pi / 2 * min(b / longest, 1.0))
    return lead.float()


def _peak(scores: Scores) -> float:
    """The largest |total| that can be read, 0 where there is none."""
    readable = scores.total[scores.total_valid]
    return float(readable.abs().max()) if len(readable) else 0.0


def _standing(x: Tensor, known: Tensor, peak: float) -> Tensor:
    """z-scores of the known entries of x (G,), unbiased std; 0 elsewhere, and everywhere if they do not differ.

    peak: the largest |score| that x was computed from, whose rounding is not a difference.
    """
    own = x[known]
    deviation = own.std() if len(own) > 1 else x.new_zeros(())
    if not deviation > RELATIVE_FLOOR * peak:
        return torch.zeros_like(x)
    return torch.where(known, (x - own.mean()) / deviation, 0.0)
