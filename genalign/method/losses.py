"""Tensors in, tensors out: advantages, weights, the forward process's losses, and pairs.

Letters: B rows, K aspects of a reward, G groups, P pairs. Rewards and log-probabilities arrive in fp32; statistics are
taken in fp64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from genalign.fronts import RELATIVE_FLOOR, front_ranks, spans, tied
from genalign.types import Scores, UsageError

AdvantageRule = Literal["sum_then_normalise", "normalise_then_sum", "lagrangian", "pareto", "best"]
Std = Literal["group", "batch", "none"]
Baseline = Literal["group", "batch", "leave_one_out"]


def advantages(
    scores: Scores,
    group: Tensor,
    rule: AdvantageRule = "sum_then_normalise",
    std: Std = "group",
    baseline: Baseline = "group",
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Advantage (B,) fp32, counted (B,) bool, and the log (reward_std, frac_reward_zero_std).

    group (B,) int64 names the siblings, which need not be adjacent. rule: "sum_then_normalise" centres and scales the
    reward's own total (GRPO, arXiv 2402.03300); "normalise_then_sum" does so with each weighted aspect, adds them up by
    weight and divides by the std of the batch (GDPO, arXiv 2601.05242), an abstaining aspect adding nothing;
    "lagrangian" mixes the advantages of the task and of each constraint, (N - sum l_i) A + sum l_i A_i (Constrained
    RLHF), the task being the weighted sum of the aspects that are no constraint, an abstaining one adding nothing;
    "pareto" takes minus the number of fronts before a row's own, among its siblings, for its score; "best" is 1 for the
    best row of each group, and no other counts (rejection sampling, RAFT, arXiv 2304.06767). std: a centred
    score is divided by the unbiased std of its group, of all rows, or by 1 (Dr. GRPO, arXiv 2503.20783). baseline: the
    mean of the group, of the batch (DDPO, arXiv 2305.13301) or of the siblings (RLOO, arXiv 2402.14740).

    counted is False, and the advantage 0, where a row was masked (its total cannot be read; one of its weighted aspects
    failed) or no aspect of it has spread; such rows leave the statistics of the others alone.

    Departs from the papers: (1) no epsilon is added to a healthy std; a column of a group whose std is at most eight
    units in the last place (fp32) of its largest |score| counts as constant instead. (2) The test is made per aspect,
    not on the sum.

    Raises:
        UsageError: rule "lagrangian", but the reward has no constraint, or nothing else.
    """
    values, valid, weights = _compared(scores, group, rule)
    names, index = torch.unique(group, return_inverse=True)
    if baseline == "batch":
        names, index = names[:1], torch.zeros_like(index)
    mean, deviation, spread, siblings = _group_statistics(values, valid, index, len(names))
    counts = valid & spread[index]  # (B,K)
    normal = values - mean[index]
    if baseline == "leave_one_out":
        normal = normal * (siblings / (siblings - 1).clamp(min=1))[index]
    if std == "group":
        normal = normal / torch.where(spread, deviation, 1.0)[index]
    elif std == "batch":
        normal = normal / _unbiased_std(values, valid).clamp(min=torch.finfo(torch.float64).tiny)
    advantage = (torch.where(counts, normal, 0.0) * weights).sum(1)  # (B,)
    readable, counted = valid.any(1), counts.any(1)
    if rule == "best":
        advantage, counted = regression_weights(scores, group, 1.0, keep=1)
    if rule == "normalise_then_sum" and std != "none":
        scale = _unbiased_std(advantage[:, None], readable[:, None])
        advantage = advantage / torch.where(scale > 0, scale, 1.0)
    log = {
        "reward_std": float(_unbiased_std(scores.total.double()[:, None], scores.total_valid[:, None])),
        "frac_reward_zero_std": 1.0 - float(spread.any(1).double().mean()) if len(names) else 0.0,
    }
    return torch.where(counted, advantage, 0.0).float(), counted, log


def _compared(scores: Scores, group: Tensor, rule: AdvantageRule) -> tuple[Tensor, Tensor, Tensor]:
    """What an advantage rule compares among siblings: scores (B,C) fp64, where they count (B,C), their weights (C,)."""
    if rule in ("sum_then_normalise", "best"):
        values, valid, weights = scores.total[:, None], scores.total_valid[:, None], scores.total.new_ones(1)
        return torch.where(valid, values, 0).double(), valid, weights
    used = scores.weights != 0
    sound = ~scores.failed[:, used].any(1, keepdim=True)
    values, valid, weights = scores.values.double(), scores.valid & sound, scores.weights
    if rule == "normalise_then_sum":
        return torch.where(valid, values, 0)[:, used], valid[:, used], weights[used]
    if rule == "pareto":
        complete = valid[:, used].all(1, keepdim=True)
        better = torch.where(complete, values[:, used] * weights[used].sign(), torch.nan)
        return -front_ranks(better, group).nan_to_num(0.0)[:, None], complete, weights.new_ones(1)
    names = list(scores.names)
    bound = [k for k, name in enumerate(names) if used[k] and {f"{name}/excess", f"{name}/multiplier"} <= set(names)]
    task = [k for k in range(len(names)) if used[k] and k not in bound]
    if not bound or not task:
        raise UsageError("the advantage rule lagrangian needs a reward that is a sum of constraints and something else")
    excess = [names.index(f"{names[k]}/excess") for k in bound]
    learnt = [names.index(f"{names[k]}/multiplier") for k in bound]
    _, index = torch.unique(group, return_inverse=True)
    known = torch.where(valid, values, 0)
    # An abstaining task aspect stands at its siblings' mean, so that it moves no advantage.
    mean, *_ = _group_statistics(known, valid, index, int(index.max()) + 1 if len(index) else 0)
    whole = (torch.where(valid, known, mean[index]) * weights)[:, task].sum(1, keepdim=True)
    multiplier = known[:, learnt].sum(0) / valid[:, learnt].sum(0).clamp(min=1) * weights[bound]
    share = weights[bound].sum() - multiplier.sum()
    readable = valid[:, task].any(1, keepdim=True)
    return (
        torch.cat([torch.where(readable, whole, 0.0), known[:, excess]], 1),
        torch.cat([readable, valid[:, excess]], 1),
        torch.cat([share[None], multiplier]),
    )


def only_aspects(scores: Scores, group: Tensor, kept: Tensor) -> Scores:
    """The scores where only the aspects that are kept (K,) have weight; themselves where all that have are.

    The total is their weighted sum, an abstaining one at the mean of its siblings, so that it moves no advantage; it
    cannot be read where one failed, or all abstain.
    """
    used = (scores.weights != 0) & kept
    if torch.equal(used, scores.weights != 0):
        return scores
    values, valid = scores.values[:, used].double(), scores.valid[:, used]
    known = torch.where(valid, values, 0.0)
    names, index = torch.unique(group, return_inverse=True)
    mean, *_ = _group_statistics(known, valid, index, len(names))
    total = (torch.where(valid, known, mean[index]) * scores.weights[used]).sum(1)
    readable = valid.any(1) & ~scores.failed[:, used].any(1)
    return replace(
        scores,
        weights=torch.where(kept, scores.weights, 0.0),
        total=torch.where(readable, total, 0.0).float(),
        total_valid=readable,
    )


def _group_statistics(x: Tensor, valid: Tensor, index: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, unbiased std, whether there is spread, and number of valid rows, each (G,K)."""
    zeros = x.new_zeros(groups, x.shape[1])
    count = zeros.index_add(0, index, valid.to(x.dtype))
    mean = zeros.index_add(0, index, x) / count.clamp(min=1)
    centred = torch.where(valid, x - mean[index], 0.0)
    deviation = (zeros.index_add(0, index, centred.square()) / (count - 1).clamp(min=1)).sqrt()
    peak = zeros.scatter_reduce(0, index[:, None].expand_as(x), x.abs(), "amax")
    return mean, deviation, deviation > RELATIVE_FLOOR * peak, count


def _unbiased_std(x: Tensor, valid: Tensor) -> Tensor:
    """Over the valid rows of each column: (B,K) -> (K,), 0 where fewer than two are valid."""
    count = valid.sum(0)
    mean = torch.where(valid, x, 0.0).sum(0) / count.clamp(min=1)
    return (torch.where(valid, x - mean, 0.0).square().sum(0) / (count - 1).clamp(min=1)).sqrt()


def nft_loss(
    score: Tensor, old_score: Tensor, gap: Tensor, optimality: Tensor, beta: float, count: int | Tensor, share: float
) -> Tensor:
    """DiffusionNFT's loss of each row (arXiv 2509.16117), weighted as its code does, from squared errors alone.

    With o the old model's output, v the target and d = out - o, the model is made positive, o + beta d, and negative,
    o - beta d, and each is regressed to v: the one by `optimality` in [0,1], the other by the rest. Both errors follow
    from score = -|out - v|^2 and gap = |out - o|^2, with grad, and old_score = -|o - v|^2, SUMMED over `count` dims:
    |o + b d - v|^2 = -(1 - b) old_score - b score - b (1 - b) gap. share: the squared error of x0_hat in one of the
    output; an error of x0_hat is divided by its own size, so that all times and samples pull alike.

    Departs from the code: (1) that size is the root of the mean square, not the mean absolute value, which squared
    errors do not tell (0.80 of it for Gaussian errors). (2) The advantage's bound is no factor of the loss.
    """

    def error(b: float) -> Tensor:
        square = share * -((1 - b) * old_score + b * score + b * (1 - b) * gap) / count
        return square / square.detach().clamp(min=1e-10).sqrt()

    return (optimality * error(beta) + (1 - optimality) * error(-beta)) / beta


def regression_weights(
    scores: Scores, group: Tensor, temperature: float, keep: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weight (B,) fp32 >= 0 of each row in a regression to its own sample, and counted (B,) bool.

    softmax(total / temperature) over the `keep` best of each group (None: over all), times their number, so that the
    mean over counted rows is 1 (reward-weighted regression, Peters and Schaal 2007, normalised per prompt). Groups
    without spread count for nothing: nothing in them is better than the rest.
    """
    weight, counted = torch.zeros(len(group)), torch.zeros(len(group), dtype=torch.bool)
    for rows in _readable_groups(scores, group):
        total = scores.total[rows].double()
        best = total.argsort(descending=True, stable=True)[:keep]
        if total.max() - total.min() <= RELATIVE_FLOOR * total.abs().max():
            continue
        weight[rows[best]] = (torch.softmax(total[best] / temperature, 0) * len(best)).float()
        counted[rows[best]] = True
    return weight, counted


def best_worst_pairs(scores: Scores, group: Tensor, min_gap: float = 0.0) -> Tensor:
    """(P,2) int64 rows, winner then loser: the best and the worst total of each group; ties give no pair."""
    pairs = []
    for rows in _readable_groups(scores, group):
        total = scores.total[rows]
        pairs.append(torch.stack([rows[total.argmax()], rows[total.argmin()]]))
    return _untied(pairs, scores, group, min_gap)


def all_pairs(scores: Scores, group: Tensor, min_gap: float = 0.0) -> Tensor:
    """(P,2) int64 rows, winner then loser: every two siblings whose totals differ by more than `min_gap`."""
    pairs = []
    for rows in _readable_groups(scores, group):
        for i, j in torch.combinations(rows):
            pairs.append(torch.stack([i, j] if scores.total[i] > scores.total[j] else [j, i]))
    return _untied(pairs, scores, group, min_gap)


def dominating_pairs(scores: Scores, group: Tensor, min_gap: float = 0.0) -> Tensor:
    """(P,2) int64 rows, winner then loser: those of `all_pairs` whose winner is at least as good by every weighted
    aspect, downwards where its weight is below 0. A row that misses one of them is in no pair (MR-FlowDPO, arXiv
    2512.10264)."""
    pairs = all_pairs(scores, group, min_gap)
    weighted = scores.weights != 0
    values = (scores.values * scores.weights.sign().to(scores.values))[:, weighted]
    complete = scores.valid[:, weighted].all(1)
    dominates = (values[pairs[:, 0]] >= values[pairs[:, 1]]).all(1)
    return pairs[dominates & complete[pairs].all(1)]


PairRule = Literal["best_worst", "all", "dominating"]
PAIR_RULES = {"best_worst": best_worst_pairs, "all": all_pairs, "dominating": dominating_pairs}


def _readable_groups(scores: Scores, group: Tensor) -> list[Tensor]:
    rows = [torch.nonzero((group == name) & scores.total_valid).flatten() for name in torch.unique(group)]
    return [r for r in rows if len(r) > 1]


def _untied(pairs: list[Tensor], scores: Scores, group: Tensor, min_gap: float) -> Tensor:
    if not pairs:
        return torch.empty(0, 2, dtype=torch.long)
    stacked = torch.stack(pairs)  # (P,2)
    total = scores.total.double()[stacked]
    gap, span = total[:, 0] - total[:, 1], spans(scores.total, scores.total_valid, group)[stacked[:, 0]]
    return stacked[~tied(gap, total.abs().amax(1), span) & (gap > min_gap)]
