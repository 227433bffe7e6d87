"""Sound at another rate; differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resampled(wave: Tensor, old: int, new: int, zeros: int = 6, rolloff: float = 0.99) -> Tensor:
    """(..., N) at `old` samples a second -> (..., ceil(N new / old)) at `new`: a Hann-windowed sinc (Smith, 1984).

    zeros and rolloff: the filter's width in zero crossings, and its cutoff by the lower Nyquist rate; the defaults are
    those of torchaudio.functional.resample, which it equals.
    """
    if old == new:
        return wave
    shrink = math.gcd(old, new)
    old, new = old // shrink, new // shrink
    cutoff = min(old, new) * rolloff
    width = math.ceil(zeros * old / cutoff)
    at = torch.arange(-width, width + old, dtype=torch.float64)[None] / old
    phase = torch.arange(0, -new, -1, dtype=torch.float64)[:, None] / new
    time = ((at + phase) * cutoff).clamp(-zeros, zeros)
    kernel = torch.sinc(time) * torch.cos(time * math.pi / zeros / 2) ** 2 * cutoff / old  # (new, 2 width + old)
    rows, length = wave.shape[:-1].numel(), wave.shape[-1]
    padded = F.pad(wave.reshape(rows, 1, length), (width, width + old))
    phases = F.conv1d(padded, kernel.to(wave)[:, None], stride=old)  # (rows, new, frames)
    made = phases.transpose(1, 2).flatten(1)[:, : math.ceil(new * length / old)]
    return made.reshape(*wave.shape[:-1], -1)
