"""What a measure of a set must be able to do, and which of two siblings a set that measures well would take."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

SWEEPS = 8  # of swaps, each of which accepts as many at once as pay


class Measure(Protocol):
    """A number about rows (n,d) of float64. better: +1 where more is better, -1 where less is."""

    better: float

    def value(self, rows: Tensor) -> Tensor: ...

    def leave_one_out(self, rows: Tensor) -> Tensor:
        """(n,): the value without each row, n >= 2."""
        ...

    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        """(n,): the value with row i, and no other, exchanged for others[i]; n >= 2."""
        ...


def couples(group: Tensor) -> Tensor:
    """(P,2) rows: the j-th sibling of the first half of each group with the j-th of the second."""
    pairs = [torch.empty(0, 2, dtype=torch.long)]
    for name in torch.unique(group):
        rows = torch.nonzero(group == name).flatten()
        half = len(rows) // 2
        pairs.append(torch.stack([rows[:half], rows[half : 2 * half]], 1))
    return torch.cat(pairs)


def contrast(measure: Measure, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """One of first[i], second[i] (P,d) for each i, so that the chosen set measures well (DRAGON, arXiv 2504.15217).

    Returns wins (P,) bool: second[i] was chosen; loss (P,) >= 0: what the chosen set loses by exchanging pair i, 0
    where it would gain. The chosen set is at least as good as either of the two.

    Departs from the paper, whose procedure is not public: the better whole set is the start, and a sweep exchanges as
    many pairs at once as still improve the set, found from all single exchanges by one eigendecomposition.
    """
    wins = torch.zeros(len(first), dtype=torch.bool)
    if measure.better * (measure.value(second) - measure.value(first)) > 0:
        wins = ~wins
    for _ in range(SWEEPS):
        chosen, others = _chosen(wins, first, second)
        best = measure.value(chosen)
        gain = measure.better * (measure.swapped(chosen, others) - best)  # (P,)
        order, many = gain.argsort(descending=True), int((gain > 1e-12).sum())
        while many:  # gains of single exchanges do not add up: halve their number until together they improve the set
            trial = wins.clone()
            trial[order[:many]] = ~wins[order[:many]]
            if measure.better * (measure.value(_chosen(trial, first, second)[0]) - best) > 0:
                break
            many //= 2
        if not many:
            return wins, (-gain).clamp(min=0)
        wins = trial
    chosen, others = _chosen(wins, first, second)
    loss = measure.better * (measure.value(chosen) - measure.swapped(chosen, others))
    return wins, loss.clamp(min=0)


def _chosen(wins: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pair the row that is in the set, and the other one."""
    return torch.where(wins[:, None], second, first), torch.where(wins[:, None], first, second)
