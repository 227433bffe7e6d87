"""Precision and recall of a set against exemplars: are its rows like them, and does it cover them?"""

from __future__ import annotations

import torch
from torch import Tensor

from genalign.reward.sets.kernel import Coverage, square_distances


class Precision(Coverage):
    """Share of rows within reach of an exemplar: nearer to one than its own k-th exemplar is.

    (Kynkaanniemi et al., arXiv 1904.06991, eq. 2; k = 3 there.) It does not measure what is missing.
    """

    def __init__(self, exemplars: Tensor, neighbours: int = 3) -> None:
        super().__init__(exemplars, neighbours)

    def value(self, rows: Tensor) -> Tensor:
        return self._hits(rows).mean()

    def leave_one_out(self, rows: Tensor) -> Tensor:
        hits = self._hits(rows)
        return (hits.sum() - hits) / (len(rows) - 1)

    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        hits = self._hits(rows)
        return (hits.sum() - hits + self._hits(others)) / len(rows)

    def _hits(self, rows: Tensor) -> Tensor:
        return self._within(rows).any(1).double()


class Recall:
    """Share of exemplars within reach of a row: nearer to one than its own k-th row is (arXiv 1904.06991, eq. 2).

    The reach belongs to the set that is measured, so a few outliers reach far: see `Coverage` for a measure that they
    cannot move. Of k rows or fewer, the farthest one is the reach; of one row, nothing. Credit is recomputed row by
    row, n^2 m comparisons for n rows and m exemplars.
    """

    better = 1.0

    def __init__(self, exemplars: Tensor, neighbours: int = 3) -> None:
        self.exemplars, self.neighbours = exemplars, neighbours

    def value(self, rows: Tensor) -> Tensor:
        return self._share(square_distances(rows, rows), square_distances(rows, self.exemplars))

    @torch.no_grad()
    def leave_one_out(self, rows: Tensor) -> Tensor:
        own, to = square_distances(rows, rows), square_distances(rows, self.exemplars)
        values = []
        for i in range(len(rows)):
            rest = torch.arange(len(rows)) != i
            values.append(self._share(own[rest][:, rest], to[rest]))
        return torch.stack(values)

    @torch.no_grad()
    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        own, to = square_distances(rows, rows), square_distances(rows, self.exemplars)
        come, come_to = square_distances(others, rows), square_distances(others, self.exemplars)
        values = []
        for i in range(len(rows)):
            among, towards = own.clone(), to.clone()
            among[i], among[:, i], towards[i] = come[i], come[i], come_to[i]
            values.append(self._share(among, towards))
        return torch.stack(values)

    def _share(self, own: Tensor, to: Tensor) -> Tensor:
        """own (n,n), to (n,m): squared distances; the diagonal of `own` is not read."""
        count = len(own)
        if count == 1:
            return (to == 0).any(0).double().mean()
        apart = own.clone().fill_diagonal_(torch.inf)
        reach = apart.kthvalue(min(self.neighbours, count - 1), 1).values
        return (to <= reach[:, None]).any(0).double().mean()
