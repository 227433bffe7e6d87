"""Steps of several parts that each have a schedule of their own, such as a video and its sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genalign.policy.transition import StepTable


@dataclass(frozen=True)
class Tables:
    """Reads as one StepTable of latents (R,N) that are the parts, flat and end to end.

    parts: a table for each part that a turn moves, all of T steps. sizes: the elements of each in one row. A step that
    is deterministic in one part is so in all, so that every recorded step has a density of each.
    """

    parts: tuple[StepTable, ...]
    sizes: tuple[int, ...]

    @staticmethod
    def of(parts: Sequence[StepTable], sizes: Sequence[int]) -> Tables:
        noisy = torch.stack([table.S > 0 for table in parts]).all(0)
        return Tables(tuple(table.where(noisy) for table in parts), tuple(sizes))

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def stochastic(self) -> list[int]:
        return self.parts[0].stochastic

    def window(self, start: int, width: int) -> Tables:
        return replace(self, parts=tuple(table.window(start, width) for table in self.parts))

    def part(self, number: int) -> StepTable:
        return self.parts[number]

    def over(self, numbers: Sequence[int]) -> StepTable | Tables:
        """That of these parts, flat and end to end."""
        if len(numbers) == 1:
            return self.parts[numbers[0]]
        return Tables(tuple(self.parts[k] for k in numbers), tuple(self.sizes[k] for k in numbers))

    def mean(self, i: int, x: Tensor, out: Tensor) -> Tensor:
        means = [table.mean(i, *pair) for table, pair in zip(self.parts, self._cut(x, out), strict=True)]
        return torch.cat(means, 1)

    def logp(self, i: int, x_next: Tensor, mean: Tensor) -> Tensor:
        return self._sum([t.logp(i, *pair) for t, pair in zip(self.parts, self._cut(x_next, mean), strict=True)])

    def kl(self, i: int, mean: Tensor, other: Tensor) -> Tensor:
        return self._sum([t.kl(i, *pair) for t, pair in zip(self.parts, self._cut(mean, other), strict=True)])

    def scored(self, x: Tensor) -> int:
        return x.numel()

    def _cut(self, *rows: Tensor) -> list[tuple[Tensor, ...]]:
        return list(zip(*(row.split(self.sizes, 1) for row in rows), strict=True))

    @staticmethod
    def _sum(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).sum(0)
