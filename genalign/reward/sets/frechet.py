"""The Frechet distance between a set of features and exemplars (FID, FAD), its credit per row, and its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genalign.ranks import gather
from genalign.reward.sets.spectrum import RowSpectrum
from genalign.types import UsageError


@dataclass(frozen=True)
class Moments:
    """Count, mean (d,) and scatter (d,d) = sum (x - mean)(x - mean)^T of rows, float64; they merge without the rows."""

    count: int
    mean: Tensor
    scatter: Tensor

    @staticmethod
    def of(rows: Tensor) -> Moments:
        """Of rows (n,d), n >= 0."""
        rows = rows.double()
        mean = rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1])
        centred = rows - mean
        return Moments(len(rows), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """Of both sets of rows together (Chan, Golub and LeVeque, 1983): no large sum is subtracted from another."""
        count = self.count + other.count
        if count == 0:
            return self
        apart, share = other.mean - self.mean, other.count / count
        scatter = self.scatter + other.scatter + self.count * share * torch.outer(apart, apart)
        return Moments(count, self.mean + share * apart, scatter)

    def over_ranks(self) -> Moments:
        """Of the rows of all ranks, the same on every rank. Every rank must call it."""
        counts = gather(torch.tensor([self.count])).tolist()
        means, scatters = gather(self.mean[None]), gather(self.scatter[None])
        merged = Moments(counts[0], means[0], scatters[0])
        for count, mean, scatter in zip(counts[1:], means[1:], scatters[1:], strict=True):
            merged = merged.merge(Moments(count, mean, scatter))
        return merged

    @property
    def covariance(self) -> Tensor:
        """(d,d), with n - 1; of fewer than two rows it is 0."""
        return self.scatter / max(self.count - 1, 1)


class Frechet:
    """FD = |m - mu|^2 + tr S + tr Sigma - 2 tr (Sigma^1/2 S Sigma^1/2)^1/2 between rows and the exemplars' moments.

    (Heusel et al., arXiv 1706.08500; Kilgour et al., arXiv 1812.08466.) The last trace is the nuclear norm of
    (X - m) F / sqrt(n - 1) with any F F^T = Sigma: real by construction, never squared, and right for any rank of
    either side. One row has S = 0. Gradients flow; directions without spread have none.

    Raises:
        UsageError: fewer than 2 exemplars.
    """

    better = -1.0  # less is better

    def __init__(self, exemplars: Moments) -> None:
        if exemplars.count < 2:
            raise UsageError(f"a Frechet distance needs at least 2 exemplars, not {exemplars.count}; add some")
        values, vectors = torch.linalg.eigh(exemplars.covariance)
        kept = values > 1e-14 * values[-1]
        self.mean, self.trace = exemplars.mean, exemplars.covariance.trace()
        self.factor = vectors[:, kept] * values[kept].sqrt()  # (d,r)

    def value(self, rows: Tensor) -> Tensor:
        """The distance of rows (n,d), n >= 1."""
        mean = rows.mean(0)
        centred = rows - mean
        degrees = max(len(rows) - 1, 1)
        overlap = _nuclear(centred @ self.factor) / math.sqrt(degrees)
        return (mean - self.mean).square().sum() + centred.square().sum() / degrees + self.trace - 2 * overlap

    def each(self, frames: Tensor) -> Tensor:
        """(B,): the distance of each (f,d) of frames (B,f,d) by itself; f = 1: |x - mu|^2 + tr Sigma."""
        mean = frames.mean(1)
        centred = frames - mean[:, None]
        degrees = max(frames.shape[1] - 1, 1)
        apart = (mean - self.mean).square().sum(1) + centred.square().sum((1, 2)) / degrees + self.trace
        if frames.shape[1] == 1:
            return apart
        return apart - 2 * torch.linalg.svdvals(centred @ self.factor).sum(1) / math.sqrt(degrees)

    @torch.no_grad()
    def leave_one_out(self, rows: Tensor) -> Tensor:
        """(n,): the distance without each row, n >= 2. sqrt(l) = 1/pi Int_0^inf log(1 + l/s^2) ds; see spectrum.py."""
        n = len(rows)
        if n == 2:
            return torch.stack([self.value(rows[1:]), self.value(rows[:1])])
        mean = rows.mean(0)
        centred = rows - mean
        spread = centred.square().sum(1)  # (n,)
        projected = centred @ self.factor  # (n,r) Y; T = Y^T Y, whose roots' sum is the nuclear norm
        spectrum = RowSpectrum(projected, centred=True)
        t, weights = spectrum.nodes(1e-18, 1e12, 0.8)
        # Without row i the scatter is T - n/(n-1) y_i y_i^T, the mean having moved too: a rank-one change.
        ratio = spectrum.slack(t) * n / (n - 1)  # (n,q) det(T_-i + t) / det(T + t)
        change = _integral(ratio, t, weights, -n / (n - 1) * projected.square().sum(1))
        overlap = (_nuclear(projected) + change) / math.sqrt(n - 2)
        shifted = mean - centred / (n - 1)  # (n,d) the means without each row
        left = (spread.sum() - n / (n - 1) * spread) / (n - 2)
        return (shifted - self.mean).square().sum(1) + left + self.trace - 2 * overlap

    @torch.no_grad()
    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        """(n,): the distance with row i, and no other, exchanged for others[i] (n,d); n >= 2."""
        n = len(rows)
        mean = rows.mean(0)
        gone, come = rows - mean, others - mean
        old, new = gone @ self.factor, come @ self.factor
        spectrum = RowSpectrum(old, centred=True)
        t, weights = spectrum.nodes(1e-18, 1e12, 0.8)
        # Row a goes and row b comes: with c = (b - a)/n the mean's own shift, the scatter changes by
        # -a a^T + b b^T - n c c^T. Its determinant ratio (matrix determinant lemma, 2x2), written as a sum of terms
        # that are positive, so that nothing cancels; then the root's integral gives the new nuclear norm.
        slack, cross, both = spectrum.exchange(new, t)
        ratio = (cross + 1 / n).square() + (1 + 1 / n) * slack + both
        overlap = (_nuclear(old) + _integral(ratio, t, weights, _gained(old, new, n))) / math.sqrt(n - 1)
        spread = (gone.square().sum() + _gained(gone, come, n)) / (n - 1)
        shifted = mean + (come - gone) / n
        return (shifted - self.mean).square().sum(1) + spread + self.trace - 2 * overlap


def _gained(gone: Tensor, come: Tensor, n: int) -> Tensor:
    """(n,): what the trace of the scatter gains when a centred row goes and another one comes."""
    return -(1 + 1 / n) * gone.square().sum(1) + 2 / n * (gone * come).sum(1) + (1 - 1 / n) * come.square().sum(1)


def _integral(ratio: Tensor, t: Tensor, weights: Tensor, gained: Tensor) -> Tensor:
    """1/pi Int_0^inf log ratio(s^2) ds, (n,), from nodes t = s^2; beyond the last the integrand is gained / s^2."""
    s = t.sqrt()
    return (ratio.log() @ (weights / (2 * s)) + gained / s[-1]) / math.pi


def _nuclear(matrix: Tensor) -> Tensor:
    """The sum of the singular values, without those that are rounding, whose gradient would be noise."""
    values = torch.linalg.svdvals(matrix)
    return values[values > 1e-12 * values[:1]].sum()


def frechet_infinity(rows: Tensor, exemplars: Moments, sizes: int = 15, seed: int = 0) -> float:
    """The distance that ever larger sets from the same law would tend to: the intercept of FD_n = a + b/n.

    (Chong and Forsyth, arXiv 1911.07023, with the linear fit of fadtk.) n runs from an eighth of the rows, or 4 d where
    that is more, to all of them.

    Departs from the papers' code: subsets are drawn without replacement; with it, the extrapolation is to the finite
    set and keeps almost all of its bias.

    Raises:
        UsageError: fewer than 8 d rows, where the distance is not yet linear in 1/n.
    """
    rows = rows.double()
    count, dims = rows.shape
    if count < 8 * dims:
        raise UsageError(
            f"the limit of a Frechet distance in {dims} dims needs {8 * dims} rows, not {count}; draw more"
        )
    distance = Frechet(exemplars)
    generator = torch.Generator().manual_seed(seed)
    at = torch.linspace(max(4 * dims, count // 8), count, sizes).long()
    found = [distance.value(rows[torch.randperm(count, generator=generator)[:n]]) for n in at.tolist()]
    design = torch.stack([torch.ones(sizes), 1 / at], 1).double()
    return float(torch.linalg.lstsq(design, torch.stack(found)[:, None]).solution[0, 0])


class FrechetInfinity(Frechet):
    """`frechet_infinity` as a measure: the value is the limit, the credit of each row that of the plain distance.

    No gradient.
    """

    def __init__(self, exemplars: Moments) -> None:
        super().__init__(exemplars)
        self.exemplars = exemplars

    @torch.no_grad()
    def value(self, rows: Tensor) -> Tensor:
        return rows.new_tensor(frechet_infinity(rows, self.exemplars))

    @torch.no_grad()
    def leave_one_out(self, rows: Tensor) -> Tensor:
        return self.value(rows) + super().leave_one_out(rows) - super().value(rows)

    @torch.no_grad()
    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        return self.value(rows) + super().swapped(rows, others) - super().value(rows)
