"""Sound at another rate; differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resampled(wave: Tensor, old: int, new: int, zeros: int = 6, rolloff: float = 0.99) -> Tensor:
    """(N,) at `old` samples a second -> (ceil(N new / old),) at `new`: a Hann-windowed sinc (Smith, 1984).

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
    padded = F.pad(wave, (width, width + old))[None, None]
    phases = F.conv1d(padded, kernel.to(wave)[:, None], stride=old)[0]  # (new, frames)
    return phases.T.flatten()[: math.ceil(new * len(wave) / old)]
