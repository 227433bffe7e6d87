"""What changes in a spectrum when one row of a set is left out or exchanged: all n changes for one decomposition.

With T = Y^T Y and a function of its eigenvalues that is an integral of log det(T + t), a rank-one or rank-two update of
T is the determinant of a 1x1 or 2x2 matrix at every node t (the matrix determinant lemma). Written with the leverages
of the rows, every term below is positive, so nothing cancels, also where the rows span less than the space.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NULL = 1e-13  # eigenvalues below this share of the largest are rounding


class RowSpectrum:
    """rows (n,d) float64 = U diag(sqrt(values)) V^T, by one decomposition.

    centred: the rows sum to 0. values (k,) > 0; left (n,k). Leverages (row norms of U) must be right to
    rounding, since an integral over a square root sees the root of their error: so tall rows take the SVD, and of wide
    ones, whose n x n Gram matrix is cheaper, the null direction of centred rows is set apart.
    """

    def __init__(self, rows: Tensor, centred: bool) -> None:
        n = len(rows)
        self.rows, self.whole = rows, 1 - 1 / n if centred else 1.0  # whole: the greatest leverage there can be
        if n <= rows.shape[1]:
            gram = rows @ rows.T
            values, self.left = torch.linalg.eigh(gram - gram.trace() / n**2 if centred else gram)
        else:
            self.left, roots, _ = torch.linalg.svd(rows, full_matrices=False)
            values = roots.square()
        kept = values > NULL * values.max()
        self.values, self.left = values[kept], self.left[:, kept]
        self.top = self.values.max() if len(self.values) else rows.new_ones(())

    def nodes(self, low: float, high: float, step: float) -> tuple[Tensor, Tensor]:
        """Points t (q,) from low to high times the largest eigenvalue, and weights (q,) of an integral over t.

        The trapezoid rule in log t, in steps of at most `step`: it converges exponentially, to exp(-2 pi^2 / step).
        """
        count = int(math.log(high / low) / step) + 2
        t = torch.linspace(math.log(low), math.log(high), count, dtype=self.rows.dtype).exp() * self.top
        weights = t * math.log(high / low) / (count - 1)
        weights[[0, -1]] /= 2
        return t, weights

    def slack(self, t: Tensor) -> Tensor:
        """(n,q): whole - y_i^T (T+t)^-1 y_i."""
        squares = self.left.square()  # (n,k)
        outside = (self.whole - squares.sum(1)).clamp(min=0)
        return outside[:, None] + squares @ (t / (self.values[:, None] + t))

    def exchange(self, others: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With b_i = others[i] (n,d): slack (n,q), y_i^T (T+t)^-1 b_i (n,q), and slack * b_i^T (T+t)^-1 b_i (n,q)."""
        slack, roots = self.slack(t), self.values.sqrt()
        within = others @ (self.rows.T @ self.left / roots)  # (n,k) in the right basis
        inverse = 1 / (self.values[:, None] + t)  # (k,q)
        cross = (self.left * roots * within) @ inverse
        beyond = (others.square().sum(1) - within.square().sum(1)).clamp(min=0)  # of b_i, outside the rows' span
        return slack, cross, slack * (within.square() @ inverse) + slack / t * beyond[:, None]
