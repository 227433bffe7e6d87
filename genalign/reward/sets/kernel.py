"""Kernel distance and coverage: measures of a set against exemplars whose every marginal is exact and free."""

from __future__ import annotations

import torch
from torch import Tensor

from genalign.types import UsageError


class KernelDistance:
    """Unbiased MMD^2 with a Gaussian kernel (Gretton et al., 2012, eq. 3; KAD, arXiv 2502.15602): may be negative.

    The bandwidth is the median distance between exemplars and stays fixed, so that a policy cannot move it.
    One row has no pair: its own term is left out.

    Departs from KAD: no factor of 100, and the bandwidth is never taken from the generated set.

    Raises:
        UsageError: fewer than 2 exemplars, or most of them equal.
    """

    better = -1.0

    def __init__(self, exemplars: Tensor) -> None:
        if len(exemplars) < 2:
            raise UsageError(f"a kernel distance needs at least 2 exemplars, not {len(exemplars)}; add some")
        self.exemplars = exemplars
        apart = torch.triu_indices(len(exemplars), len(exemplars), 1)
        squares = square_distances(exemplars, exemplars)
        self.bandwidth = float(squares[apart[0], apart[1]].sqrt().median())
        if self.bandwidth <= 0:
            raise UsageError("most exemplars of the kernel distance are the same; add different ones")
        own = (-squares / (2 * self.bandwidth**2)).exp()
        count = len(exemplars)
        self.among = (own.sum() - own.trace()) / (count * (count - 1))

    def _kernel(self, rows: Tensor, others: Tensor) -> Tensor:
        return (-square_distances(rows, others) / (2 * self.bandwidth**2)).exp()

    def value(self, rows: Tensor) -> Tensor:
        n = len(rows)
        own, to = self._kernel(rows, rows), self._kernel(rows, self.exemplars).mean(1)
        return (own.sum() - own.trace()) / max(n * (n - 1), 1) + self.among - 2 * to.mean()

    def each(self, frames: Tensor) -> Tensor:
        """(B,): the distance of each (f,d) of frames (B,f,d) by itself."""
        return torch.stack([self.value(rows) for rows in frames])

    @torch.no_grad()
    def leave_one_out(self, rows: Tensor) -> Tensor:
        n = len(rows)
        own, to = self._kernel(rows, rows), self._kernel(rows, self.exemplars).mean(1)
        pairs = own.sum(1) - own.diagonal()  # (n,) with all other rows
        among = (pairs.sum() - 2 * pairs) / max((n - 1) * (n - 2), 1)
        return among + self.among - 2 * (to.sum() - to) / (n - 1)

    @torch.no_grad()
    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        n = len(rows)
        own, new = self._kernel(rows, rows), self._kernel(others, rows)
        to, new_to = self._kernel(rows, self.exemplars).mean(1), self._kernel(others, self.exemplars).mean(1)
        gone, come = own.sum(1) - own.diagonal(), new.sum(1) - new.diagonal()
        among = (own.sum() - own.trace() + 2 * (come - gone)) / (n * (n - 1))
        return among + self.among - 2 * (to.sum() - to + new_to) / n


class Coverage:
    """Share of exemplars with a row nearer than their own k-th exemplar (Naeem et al., arXiv 2002.09797).

    No gradient: it counts.

    Raises:
        UsageError: no more exemplars than neighbours.
    """

    better = 1.0

    def __init__(self, exemplars: Tensor, neighbours: int = 5) -> None:
        if len(exemplars) <= neighbours:
            raise UsageError(f"coverage needs more than {neighbours} exemplars, not {len(exemplars)}; add some")
        self.exemplars = exemplars
        squares = square_distances(exemplars, exemplars).fill_diagonal_(torch.inf)
        self.reach = squares.kthvalue(neighbours, 1).values  # (m,) squared radii

    def _within(self, rows: Tensor) -> Tensor:
        return square_distances(rows, self.exemplars) <= self.reach  # (n,m)

    def value(self, rows: Tensor) -> Tensor:
        return self._within(rows).any(0).double().mean()

    def leave_one_out(self, rows: Tensor) -> Tensor:
        within = self._within(rows)
        return ((within.sum(0) - within.long()) > 0).double().mean(1)

    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        within, new = self._within(rows), self._within(others)
        return ((within.sum(0) - within.long() + new.long()) > 0).double().mean(1)


def square_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances (n,m) of rows; rounding may not make one negative."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)
