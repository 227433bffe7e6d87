"""What of a video is measured frame by frame, some frames at a time, so that a long one costs no more memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.types.samples import as_floats, in_chunks

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
STILL = 0.5 / 255  # mean change below which a frame repeats the one before


class Measures(NamedTuple):
    """colours: (T,3) mean of each frame. changes: (T-1,) mean absolute change to the next one, all colours alike.
    saturation: (T,) mean of the largest less the smallest colour."""

    colours: Tensor
    changes: Tensor
    saturation: Tensor

    @property
    def brightness(self) -> float:
        """Mean luma, in [0,1]."""
        return float((self.colours @ self.colours.new_tensor(LUMA)).mean())

    @property
    def motion(self) -> float:
        """Motion energy: mean absolute change from frame to frame, in [0,1]; 0 of a single frame."""
        return float(self.changes.mean()) if len(self.changes) else 0.0

    @property
    def frozen(self) -> float:
        """Share of frames that repeat the one before, of those that have one."""
        return float((self.changes < STILL).float().mean()) if len(self.changes) else 0.0

    @property
    def flicker(self) -> float:
        """How far the mean colour of a frame lies off the middle of its neighbours', a mean over frames and colours.

        A fade and an object that moves within the picture have none; colours that alternate by a have a.
        """
        if len(self.colours) < 3:
            return 0.0
        middle = (self.colours[:-2] + self.colours[2:]) / 2
        return float((self.colours[1:-1] - middle).abs().mean())


def chunked(row: Tensor) -> Iterator[Tensor]:
    """Frames (F,3,H,W), in [0,1] or as levels, as floats on the CPU, some at a time (`in_chunks`)."""
    return (as_floats(part.detach()).float().cpu() for part in in_chunks(row))


def measure(row: Tensor) -> Measures:
    """The measures of frames (F,3,H,W), in [0,1] or as levels."""
    colours, changes, saturation = [], [], []
    last: Tensor | None = None
    for frames in chunked(row):
        colours.append(frames.mean((2, 3)))
        saturation.append((frames.amax(1) - frames.amin(1)).mean((1, 2)))
        before = frames if last is None else torch.cat([last, frames])
        changes.append((before[1:] - before[:-1]).abs_().mean((1, 2, 3)))
        last = frames[-1:]
    return Measures(torch.cat(colours), torch.cat(changes), torch.cat(saturation))


def small_luma(row: Tensor, side: int) -> Tensor:
    """The luma (F,h,w) in [0,1] of frames (F,3,H,W), reduced until no side is over `side` pixels (mean of areas)."""
    height, width = row.shape[-2:]
    shrink = max(1.0, height / side, width / side)
    size = max(1, round(height / shrink)), max(1, round(width / shrink))
    parts = []
    for frames in chunked(row):
        luma = (frames * frames.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)  # (f,1,H,W)
        parts.append(luma[:, 0] if shrink == 1 else F.adaptive_avg_pool2d(luma, size)[:, 0])
    return torch.cat(parts)
