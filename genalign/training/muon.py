"""torch's Muon, but for one thing: on a CPU its iteration runs in float32.

torch has it in bfloat16, for whose products a CPU needs instructions of their own (AVX-512 BF16 or AMX). One without
takes ten times as long for a whole training step of tiny-music's autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import _muon as torchs

ITERATION = "_zeropower_via_newtonschulz"


class Muon(torch.optim.Muon):
    """Jordan et al. (2024); arguments and state are those of torch.optim.Muon."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        whole = getattr(torchs, ITERATION)

        def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
            iterate = newton_schulz if matrix.device.type == "cpu" else whole
            made: Tensor = iterate(matrix, coefficients, steps, eps)
            return made

        setattr(torchs, ITERATION, orthogonal)
        try:
            return super().step(closure)
        finally:
            setattr(torchs, ITERATION, whole)


def newton_schulz(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """(R, C) -> (R, C) float32: its directions, all of singular values about 1 (between 0.7 and 1.2)."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
