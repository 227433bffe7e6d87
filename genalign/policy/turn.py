"""What one turn of a pipeline's loop moves: one tensor, or parts that its schedulers are given one after the other.

Parts are the latents of several media, or frames. Where there is more than one, a row of latents is all of them, flat
and end to end, wherever a step of the whole is meant: densities, clean samples, what is kept of a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Turn:
    """Gathers the parts of each turn. count: how many a turn has; rows: R."""

    def __init__(self, count: int, rows: int) -> None:
        self.count, self.rows = count, rows
        self._gathered: list[tuple[Tensor, ...]] = []  # what came of this turn so far
        self._offset = 0  # of the next part in a row of all

    @property
    def part(self) -> int:
        """The number of the part that comes next."""
        return len(self._gathered)

    def add(self, *values: Tensor) -> tuple[Tensor, ...] | None:
        """What belongs to the next part; at the last part of a turn each value of all its parts, (R,*L)."""
        self._gathered.append(values)
        self._offset += values[0].numel() // self.rows
        if len(self._gathered) < self.count:
            return None
        whole = tuple(packed(column, self.rows) for column in zip(*self._gathered, strict=True))
        self._gathered, self._offset = [], 0
        return whole

    def share(self, x: Tensor, sample: Tensor) -> Tensor:
        """Of latents x (R,*L) the next part, in the form of `sample`; strides as well, for kernels round by them."""
        if self.count == 1:
            return x if x.shape == sample.shape else x.flatten(0, 1)
        own = x[:, self._offset : self._offset + sample.numel() // self.rows]
        return torch.empty_like(sample).copy_(own.reshape(sample.shape))


def packed(parts: Sequence[Tensor], rows: int) -> Tensor:
    """Parts as one tensor (R,*L). Frames that a pipeline folds into its rows, (R*F,...), are one of them: (R,F,...)."""
    own = [part if len(part) == rows else part.unflatten(0, (rows, -1)) for part in parts]
    return own[0] if len(own) == 1 else torch.cat([part.flatten(1) for part in own], 1)
