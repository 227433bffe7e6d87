"""What a function gave back: columns of numbers, abstentions and confidences; or an error, as one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genalign.reward.base import ScoringError


def describe(error: BaseException) -> str:
    """One line: kind, message, and where it happened; of a ScoringError its message alone."""
    if isinstance(error, ScoringError):
        return str(error)
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = "" if where is None else f" ({Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}{place}"


def read_column(column: Any, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One aspect as returned -> values, valid, failed, confidence, each (B,).

    Raises:
        ScoringError: wrong length or shape, or no column at all.
    """
    confidences: Any = None
    # A *tuple* of two columns is scores and confidences; a list of two entries is two rows.
    if isinstance(column, tuple) and len(column) == 2 and hasattr(column[0], "__len__"):
        column, confidences = column
    scores, given = _numbers(column, rows, "scores")
    if confidences is None and isinstance(column, list | tuple):
        confidences = [entry[1] if _is_pair(entry) else 1.0 for entry in column]
    confidence = torch.ones(rows) if confidences is None else _numbers(confidences, rows, "confidences")[0]
    sound = torch.isfinite(scores) & (confidence >= 0) & (confidence <= 1)
    valid = given & sound
    return torch.where(valid, scores, 0.0), valid, given & ~sound, torch.where(valid, confidence, 0.0)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2


def _numbers(column: Any, rows: int, what: str) -> tuple[Tensor, Tensor]:
    """(B,) fp32 numbers, and where there is one (B,); 0 for None."""
    if isinstance(column, str) or not hasattr(column, "__len__"):
        raise ScoringError(f"returned {type(column).__name__} where {rows} {what} were expected")
    if str(getattr(column, "dtype", "")) == "object" or type(column).__name__ == "Series":
        column = list(column)  # numpy's and pandas', read value by value as TRL does
    if not isinstance(column, list | tuple):
        column = torch.as_tensor(column)
        if column.shape != (rows,):
            raise ScoringError(f"returned {what} of shape {tuple(column.shape)} for {rows} rows")
        return column.float().cpu(), torch.ones(rows, dtype=torch.bool)
    if len(column) != rows:
        raise ScoringError(f"returned {len(column)} {what} for {rows} rows")
    plain = [entry[0] if _is_pair(entry) else entry for entry in column]
    numbers = [
        torch.as_tensor(0.0 if entry is None else entry, dtype=torch.float32).cpu().reshape(()) for entry in plain
    ]
    given = torch.tensor([entry is not None for entry in plain], dtype=torch.bool)
    return torch.stack(numbers) if numbers else torch.zeros(0), given
