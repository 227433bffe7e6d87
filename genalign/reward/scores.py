"""Making, joining and totalling Scores: the abstain rule, and scores of a reward that abstains or failed everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

from genalign.reward.base import aspect_weights
from genalign.types import Media, Prompt, Reward, Scores

Missing = Literal["zero_advantage", "renormalise", "invalid"]


def combine(
    values: Tensor, valid: Tensor, failed: Tensor, weights: Tensor, group: Tensor | None, missing: Missing
) -> tuple[Tensor, Tensor]:
    """Weighted sum over columns, (B,) and where it may be read, (B,): the abstain rule.

    values, valid, failed: (B,P); weights (P,). Columns of weight 0 play no part. A row is unreadable where a column
    failed or where all abstain. Where only some abstain: "zero_advantage" puts the mean of the row's valid siblings in
    their place (without any: 0, the same for all siblings), so that they move no advantage; "renormalise" gives their
    weight to the others; "invalid" makes the row unreadable.
    """
    used = weights != 0
    values, valid, failed, weights = values[:, used], valid[:, used], failed[:, used], weights[used].to(values)
    readable = valid.any(1) & ~failed.any(1)
    values = torch.where(valid, values, 0.0)
    if missing == "invalid":
        readable = valid.all(1)
    elif missing == "zero_advantage":
        values = torch.where(valid, values, _siblings_mean(values, valid, group))
    total = values @ weights
    if missing == "renormalise":
        present = valid.to(values) @ weights.abs()  # (B,) weight of the columns that do not abstain
        total = total * weights.abs().sum() / torch.where(present > 0, present, 1.0)
    return torch.where(readable, total, 0.0), readable


def _siblings_mean(values: Tensor, valid: Tensor, group: Tensor | None) -> Tensor:
    """(B,P) the mean of each column over the row's valid siblings, itself included; 0 where there are none."""
    if group is None:
        return torch.zeros_like(values)
    _, index = torch.unique(group.to(values.device), return_inverse=True)
    zeros = values.new_zeros(int(index.max()) + 1 if len(index) else 0, values.shape[1])
    sums = zeros.index_add(0, index, values)
    counts = zeros.index_add(0, index, valid.to(values))
    return (sums / counts.clamp(min=1))[index]


def total_confidence(scores: Scores) -> Tensor:
    """(B,) confidence in the total: the mean over its valid columns, by absolute weight; 0 where it cannot be read."""
    if scores.confidence is None:
        return scores.total_valid.to(scores.values.dtype)
    share = scores.valid.to(scores.values.dtype) * scores.weights.abs()
    mean = (scores.confidence * share).sum(1) / share.sum(1).clamp(min=1e-12)
    return torch.where(scores.total_valid, mean, 0.0)


def all_valid(
    aspects: tuple[str, ...], values: Tensor, std: Tensor | None = None, info: Mapping[str, list[Any]] | None = None
) -> Scores:
    """Scores (B,K) of a reward that scores every row: the total is the sum of the aspects. std: (B,K) or None."""
    valid = torch.ones_like(values, dtype=torch.bool)
    ones = torch.ones(len(aspects))
    return Scores(aspects, values, valid, ~valid, values.sum(1), valid.all(1), ones, std=std, info=info or {})


def all_abstained(reward: Reward, rows: int) -> Scores:
    """The scores of a reward that abstains from every row."""
    values = torch.zeros(rows, len(reward.aspects))
    none = torch.zeros_like(values, dtype=torch.bool)
    return Scores(reward.aspects, values, none, none, torch.zeros(rows), none.any(1), aspect_weights(reward))


def all_failed(reward: Reward, rows: int, error: str) -> Scores:
    """The scores of a reward that failed on every row; `error`, one sentence, goes to info["error"]."""
    abstained = all_abstained(reward, rows)
    return replace(abstained, failed=torch.ones_like(abstained.failed), info={"error": [error] * rows})


Call = Callable[[Sequence[Prompt], Media, Tensor | None], Scores]


def score_sound(
    reward: Reward,
    call: Call,
    faults: Sequence[str | None],
    prompts: Sequence[Prompt],
    media: Media,
    group: Tensor | None,
) -> Scores:
    """`call` on the rows without a fault, as if the others were not there; these fail, the fault as their error."""
    rows = [row for row, fault in enumerate(faults) if fault is None]
    if len(rows) == len(faults):
        return call(prompts, media, group)
    if not rows and reward.looks_at != "batch":  # a measure of the set is called by every rank, were it with no row
        return replace(all_failed(reward, len(faults), ""), info={"error": list(faults)})
    some = None if group is None else group[torch.tensor(rows, dtype=torch.long, device=group.device)]
    return filled(call([prompts[row] for row in rows], media.select(rows), some), faults)


def readable_rows(call: Callable[..., Scores]) -> Callable[..., Scores]:
    """Decorates a head's `__call__`: rows that its `faults` name fail one by one, and no other row's score changes.

    They are never computed on, since the gradient of a masked NaN is NaN.
    """

    @wraps(call)
    def scored(self: Any, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        faults = self.faults(prompts, media)
        return score_sound(self, lambda *given: call(self, *given), faults, prompts, media, group)

    return scored


def filled(scores: Scores, faults: Sequence[str | None]) -> Scores:
    """Scores of the rows without a fault, each at its own place among all; the others failed. Gradients pass."""
    rows = [row for row, fault in enumerate(faults) if fault is None]
    place = torch.tensor(rows, dtype=torch.long, device=scores.values.device)

    def placed(part: Tensor) -> Tensor:
        return part.new_zeros(len(faults), *part.shape[1:]).index_copy(0, place.to(part.device), part)

    failed = placed(scores.failed)
    failed[[row for row, fault in enumerate(faults) if fault is not None]] = True
    info: dict[str, list[Any]] = {}
    for key, given in {"error": [None] * len(rows), **scores.info}.items():
        info[key] = list(faults) if key == "error" else [None] * len(faults)
        for row, value in zip(rows, given, strict=True):
            info[key][row] = value
    return replace(
        scores,
        values=placed(scores.values),
        valid=placed(scores.valid),
        failed=failed,
        total=placed(scores.total),
        total_valid=placed(scores.total_valid),
        confidence=None if scores.confidence is None else placed(scores.confidence),
        std=None if scores.std is None else placed(scores.std),
        info=info,
    )


def cat_scores(parts: Sequence[Scores]) -> Scores:
    """Join batches of one reward's scores; confidence and std are kept where any batch has them."""
    first = parts[0]
    return Scores(
        names=first.names,
        values=torch.cat([part.values for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        failed=torch.cat([part.failed for part in parts]),
        total=torch.cat([part.total for part in parts]),
        total_valid=torch.cat([part.total_valid for part in parts]),
        weights=first.weights,
        confidence=_cat_optional([part.confidence for part in parts], [part.valid for part in parts]),
        std=_cat_optional([part.std for part in parts], [torch.zeros_like(part.values) for part in parts]),
        info=_cat_info(parts),
    )


def _cat_info(parts: Sequence[Scores]) -> dict[str, list[Any]]:
    """Every key of any batch; None for the rows of a batch without it."""
    joined: dict[str, list[Any]] = {}
    for part in parts:
        joined |= {key: [] for key in part.info if key not in joined}
    for key, rows in joined.items():
        for part in parts:
            rows += part.info.get(key, [None] * len(part.total))
    return joined


def _cat_optional(given: Sequence[Tensor | None], otherwise: Sequence[Tensor]) -> Tensor | None:
    """None where no batch has the column; `otherwise` for the batches that lack it."""
    if all(tensor is None for tensor in given):
        return None
    return torch.cat([b.float() if a is None else a for a, b in zip(given, otherwise, strict=True)])
