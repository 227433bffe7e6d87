"""Given clips as a model draws them: so many frames, at its own rate, from the beginning of each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from genalign.media.container import Header, header, load_video
from genalign.types import UsageError

ALIKE = 0.05  # of a rate: clips that differ by less are taken frame by frame, as 24 and 25 Hz are between film and PAL


class ClipForm(NamedTuple):
    """What a model draws. frames: None where that is not known before it draws. rate: Hz.

    frames_key and rate_key: the keys of a recipe that set them.
    """

    frames: int | None
    rate: float
    frames_key: str
    rate_key: str

    def check(self, found: Header, name: str) -> None:
        """Refuse a clip that cannot be given this form, by what its file says of itself.

        Raises:
            UsageError: it has fewer frames a second, or lasts less long.
        """
        step = self.step(found.rate, name)
        own = found.frames or round((found.seconds or 0) * found.rate)
        if own:
            self._check_length(math.ceil((own - 0.5) / step), found.rate, name)

    def load(self, path: Path, name: str) -> tuple[Tensor, float]:
        """The beginning of a file in this form, (F,3,H,W) as levels, and its rate; no more of it is decoded.

        Raises:
            UsageError: as `check`, or the file is damaged.
        """
        step = self.step(header(path).rate, name)
        frames, rate = load_video(path, None if step == 1 else self.rate, self.frames)
        self._check_length(len(frames), rate, name)
        return frames, rate

    def fit(self, frames: Tensor, rate: float, name: str) -> tuple[Tensor, float]:
        """The same of frames (F,3,H,W) that are at hand: the nearest ones to 0, 1/rate, 2/rate ..."""
        step = self.step(rate, name)
        if step > 1:
            numbers = (torch.arange(math.ceil((len(frames) - 0.5) / step)) * step).round().long()
            frames, rate = frames[numbers], self.rate
        frames = frames if self.frames is None else frames[: self.frames]
        self._check_length(len(frames), rate, name)
        return frames, rate

    def step(self, rate: float, name: str) -> float:
        """Frames of a clip of `rate` Hz from one that is taken to the next; 1: all of them.

        Raises:
            UsageError: some would have to be taken twice.
        """
        if abs(rate / self.rate - 1) <= ALIKE:
            return 1.0
        if rate < self.rate:
            raise UsageError(
                f"{name} has {rate:g} frames a second, of which the model draws {self.rate:g}; set {self.rate_key} to "
                f"{rate:g}, or give clips of {self.rate:g} or more"
            )
        return rate / self.rate

    def _check_length(self, count: int, rate: float, name: str) -> None:
        if self.frames is not None and count < self.frames:
            at = self.rate if abs(rate / self.rate - 1) > ALIKE else rate
            raise UsageError(
                f"{name} is too short: it gives {count} frames at {at:g} a second, where the model draws "
                f"{self.frames}; drop it, or lower {self.frames_key}"
            )
