"""Clips drawn by hand: a textured square on its way, and knocks at chosen moments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SIZE, SQUARE = 48, 12


def square(seed: int = 0) -> Tensor:
    """(3,SQUARE,SQUARE) in [0.3,1]."""
    return 0.3 + 0.7 * torch.rand(3, SQUARE, SQUARE, generator=torch.Generator().manual_seed(seed))


def path_of(places: Sequence[tuple[int, int]], background: Tensor | float = 0.2) -> Tensor:
    """Frames (F,3,SIZE,SIZE) in [0,1] of a square whose upper left corner is at these (row, column)."""
    frames = torch.empty(len(places), 3, SIZE, SIZE)
    frames[:] = torch.as_tensor(background)
    for frame, (y, x) in zip(frames, places, strict=True):
        frame[:, y : y + SQUARE, x : x + SQUARE] = square()
    return frames


def gliding(count: int = 9, speed: int = 3) -> Tensor:
    return path_of([(18, 2 + speed * number) for number in range(count)])


def bouncing(turn: int = 4, count: int = 9, speed: int = 4) -> Tensor:
    """To the right until frame `turn`, then back."""
    return path_of([(18, 34 - speed * abs(turn - number)) for number in range(count)])


def knocks(moments: Sequence[float], seconds: float, rate: int = 8000) -> Tensor:
    """(1,N): a decaying tone from each moment on, over silence."""
    times = torch.arange(round(seconds * rate)) / rate
    wave = torch.zeros_like(times)
    for moment in moments:
        since = (times - moment).clamp(min=0)
        wave += 0.5 * torch.sin(2 * torch.pi * 600 * since) * torch.exp(-since / 0.05) * (times >= moment)
    return wave[None]
