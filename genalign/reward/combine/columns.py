"""The scores of several parts as one table: their columns side by side, and what became of each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genalign.reward.scores import total_confidence
from genalign.types import Scores


def totals(scores: Sequence[Scores]) -> tuple[Tensor, Tensor, Tensor]:
    """The parts' totals, where they are valid, and where they are missing for a failure, each (B,P)."""
    return (
        torch.stack([part.total for part in scores], 1),
        torch.stack([part.total_valid for part in scores], 1),
        torch.stack([failed_rows(part) for part in scores], 1),
    )


def least_confidence(scores: Sequence[Scores], counts: Tensor) -> Tensor | None:
    """(B,) the least confidence among the parts that count (B,P); None where no part has any."""
    if all(part.confidence is None for part in scores):
        return None
    return torch.where(counts, torch.stack([total_confidence(part) for part in scores], 1), 1.0).amin(1)


def confidences(scores: Scores) -> Tensor:
    """(B,K) the confidence in each score; without any, 1 where it is valid and 0 elsewhere."""
    return scores.valid.float() if scores.confidence is None else scores.confidence


def batch_mean(scores: Scores, aspect: str) -> float | None:
    """Mean of a column over the rows where it is valid, in float64; None where there is none."""
    k = scores.names.index(aspect)
    rows = scores.values[scores.valid[:, k], k].double()
    return float(rows.sort().values.mean()) if len(rows) else None


def failed_rows(scores: Scores) -> Tensor:
    """(B,) rows whose total is missing because something that counts went wrong."""
    return scores.failed[:, scores.weights != 0].any(1) & ~scores.total_valid


def abstained_rows(scores: Scores) -> Tensor:
    """(B,) rows without a total where nothing went wrong."""
    return ~scores.total_valid & ~failed_rows(scores)


def side_by_side(names: tuple[str, ...], parts: Sequence[Scores]) -> Scores:
    """All columns of all parts; `total` is the first part's, for the caller to replace."""
    info: dict[str, list[Any]] = {}
    for part in parts:
        info |= part.info
    if info.pop("error", None) is not None:  # several parts may have failed on a row: their messages are joined
        errors = [part.info.get("error", [None] * len(part.total)) for part in parts]
        info["error"] = ["; ".join(filter(None, row)) or None for row in zip(*errors, strict=True)]
    # Where any part has a confidence or a std, the others count as certain and as exact.
    confidence = std = None
    if any(part.confidence is not None for part in parts):
        confidence = torch.cat([confidences(part) for part in parts], 1)
    if any(part.std is not None for part in parts):
        std = torch.cat([torch.zeros_like(part.values) if part.std is None else part.std for part in parts], 1)
    return Scores(
        names=names,
        values=torch.cat([part.values for part in parts], 1),
        valid=torch.cat([part.valid for part in parts], 1),
        failed=torch.cat([part.failed for part in parts], 1),
        total=parts[0].total,
        total_valid=parts[0].total_valid,
        weights=torch.cat([part.weights for part in parts]),
        confidence=confidence,
        std=std,
        info=info,
    )
