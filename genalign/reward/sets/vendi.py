"""The Vendi score: how many different rows a set holds, and what each row adds."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from genalign.reward.sets.spectrum import RowSpectrum


class Vendi:
    """VS_q = exp of the Renyi entropy of order q of the eigenvalues of K/n, in [1,n]; no exemplars.

    K is the cosine kernel of the rows (Friedman and Dieng, arXiv 2210.02410; order 2: RKE, Jalali et al., 2023,
    n^2 / |K|^2, which needs no eigenvalues and settles with fewer samples). It grows with n: compare at equal n.
    """

    better = 1.0

    def __init__(self, order: Literal[1, 2] = 1) -> None:
        self.order = order

    def value(self, rows: Tensor) -> Tensor:
        unit = _unit(rows)
        if self.order == 2:
            gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit
            return len(unit) ** 2 / gram.square().sum()
        shares = torch.linalg.svdvals(unit).square() / len(unit)
        shares = shares[shares > 1e-14]
        return (-(shares * shares.log()).sum()).exp()

    @torch.no_grad()
    def leave_one_out(self, rows: Tensor) -> Tensor:
        n, unit = len(rows), _unit(rows)
        if self.order == 2:
            squares = (unit @ unit.T).square()
            return (n - 1) ** 2 / (squares.sum() - 2 * squares.sum(1) + squares.diagonal())
        spectrum = RowSpectrum(unit, centred=False)
        t, weights = spectrum.nodes(1e-15, 1e7, 0.5)
        # All n changes of the entropy at once: log det(T + t) without row i is that with it, plus log slack_i.
        ratio, scale = spectrum.slack(t), spectrum.top
        # sum l log l = sum (l + l log c) + Int_0^inf [sum l / (c + t) - log det(1 + T/t)] dt for any c > 0
        gained = -torch.ones(n, dtype=unit.dtype)
        tail = (spectrum.left.square() @ spectrum.values.square() - 0.5 - scale) / t[-1]
        integral = -((ratio.log() - gained[:, None] / (scale + t)) @ weights + tail)
        change = gained * (1 + scale.log()) + integral
        return (math.log(n - 1) - (_entropy_sum(spectrum) + change) / (n - 1)).exp()

    @torch.no_grad()
    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        n, unit, new = len(rows), _unit(rows), _unit(others)
        if self.order == 2:
            squares, to = (unit @ unit.T).square(), (new @ unit.T).square()
            diagonal = squares.diagonal()
            kept = squares.sum() - 2 * squares.sum(1) + diagonal
            return n**2 / (kept + 2 * (to.sum(1) - to.diagonal()) + new.square().sum(1).square())
        spectrum = RowSpectrum(unit, centred=False)
        t, weights = spectrum.nodes(1e-15, 1e7, 0.5)
        slack, cross, both = spectrum.exchange(new, t)
        ratio = slack + both + cross.square()
        change = -(ratio.log() @ weights + (ratio[:, -1].log() * t[-1]))  # the trace stays n: no other term
        return (math.log(n) - (_entropy_sum(spectrum) + change) / n).exp()


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def _entropy_sum(spectrum: RowSpectrum) -> Tensor:
    return (spectrum.values * spectrum.values.log()).sum()
