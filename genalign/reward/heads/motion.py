"""Rules about clips that need no model: frames that repeat, flicker, uneven motion, and sound that misses its moment.

Each row is scored by itself and some frames at a time; a batch without videos is abstained from. None asks whether the
prompt wants motion: combine them with a reward that reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.media.frames import STILL, measure, small_luma
from genalign.reward.heads.measure import Measure
from genalign.types import Media, UsageError

SIDE = 64  # pixels of the longer side at which motion is looked at
ABRUPT = 0.3  # of 1: so much less likeness of two changes in a row than usual is a moment at which motion changes
HOP, BEFORE = 0.01, 0.05  # seconds: between two levels of sound, and over which an onset is louder than what was
RISE, FLOOR = 12.0, -60.0  # decibels: how much louder, and the level of silence
AUDIBLE = -40.0  # decibels below full scale that an onset must reach


class ClipRule(Measure):
    """What the rules share. least: frames that a clip must have."""

    needs = frozenset({"video"})
    least = 2

    def short(self, media: Media, row: int) -> str | None:
        """Fewer frames than a change of motion takes."""
        frames = len(media["video"].held[row])
        if frames >= self.least:
            return None
        return f"a video of {frames} frames is too short for {self.name}; {self.least} are the least"


class Moving(ClipRule):
    """Share of frames that differ from the one before, in [0,1]: 1 where none is frozen, 0 of a still picture.

    A frame repeats the one before where they differ by less than half of one of 255 levels in the mean.
    """

    def __init__(self, *, name: str = "moving") -> None:
        super().__init__(name)

    def score_of(self, media: Media, row: int) -> float:
        return 1 - measure(media["video"].held[row]).frozen


class Steady(ClipRule):
    """half / (half + flicker), in (0,1]: 1 where nothing flickers, 1/2 where the mean colour alternates by `half`.

    Flicker is how far a frame's mean colour lies off the middle of its two neighbours', so that fades and objects that
    move within the picture are none.
    """

    least = 3

    def __init__(self, *, half: float = 0.02, name: str = "steady") -> None:
        super().__init__(name)
        if not half > 0:
            raise UsageError(f"half of reward {name!r} is {half}; it must be above 0")
        self.half = float(half)
        self.settings = (self.half,)

    def score_of(self, media: Media, row: int) -> float:
        return self.half / (self.half + measure(media["video"].held[row]).flicker)


class SmoothMotion(ClipRule):
    """How well each change of the picture is the change before it, moved on: mean likeness over steps, in [0,1].

    Likeness of two changes in a row is the peak over all shifts of their normalised cross-correlation (by FFT, of the
    luma at most 64 pixels wide and high): 1 of anything that glides at a constant speed, before any background that
    stands still. A step from rest to motion, or back, has 0; a bounce about 1/2; frames that are repeated or dropped
    lower the steps around them. Clips at rest throughout are abstained from.
    """

    least = 3

    def __init__(self, *, name: str = "smooth-motion") -> None:
        super().__init__(name)

    def score_of(self, media: Media, row: int) -> float | None:
        likeness = likeness_of_changes(small_luma(media["video"].held[row], SIDE))
        moving = likeness[~likeness.isnan()]
        return float(moving.mean()) if len(moving) else None


class Synchrony(ClipRule):
    """Do sounds begin when motion changes? 2 (sum of closeness) / (onsets + changes), in [0,1]; 1: each meets one.

    Motion changes where two changes of the picture in a row are unlike (a bounce, a start, a stop, a cut; see
    SmoothMotion); a sound begins where it grows by 12 dB within 50 ms. Each onset is given to one change at most, so
    that the sum is largest; closeness is 1 within half a frame and falls beyond as a Gaussian of `tolerance` seconds.
    Missing or silent sound beside motion that changes has 0, for it is late for ever; clips with neither are abstained
    from, and so is a batch without sound.
    """

    needs = frozenset({"video", "audio"})
    least = 3

    def __init__(self, *, tolerance: float = 0.1, name: str = "synchrony") -> None:
        super().__init__(name)
        if not tolerance > 0:
            raise UsageError(f"tolerance of reward {name!r} is {tolerance}; it must be above 0 seconds")
        self.tolerance = float(tolerance)
        self.settings = (self.tolerance,)

    def score_of(self, media: Media, row: int) -> float | None:
        rates = [media[name].rate_of(row) for name in ("video", "audio")]
        if not all(rates):
            raise UsageError(f"reward {self.name!r} needs the rates of video and audio; give Track(video, rate)")
        frames, samples = (float(rate or 0) for rate in rates)
        seen = motion_changes(media["video"].held[row], frames)
        heard = sound_onsets(media["audio"].row(row), samples)
        if not seen and not heard:
            return None
        return 2 * self._matched(seen, heard, 0.5 / frames) / (len(seen) + len(heard))

    def _matched(self, seen: Sequence[float], heard: Sequence[float], free: float) -> float:
        from scipy.optimize import linear_sum_assignment

        apart = (torch.tensor(seen)[:, None] - torch.tensor(heard)[None]).abs() - free
        closeness = (-0.5 * (apart.clamp(min=0) / self.tolerance) ** 2).exp().numpy()
        return float(closeness[linear_sum_assignment(closeness, maximize=True)].sum())


def likeness_of_changes(luma: Tensor) -> Tensor:
    """(F,h,w) -> (F-2,) in [0,1]: how like the changes into and out of frames 1 to F-2 are; NaN where both are none."""
    size = [2 * side for side in luma.shape[1:]]  # room for every shift
    found: list[Tensor] = []
    last: tuple[Tensor, Tensor, bool] | None = None
    for frame, following in pairwise(luma):
        change = _blurred(following - frame)
        spectrum, norm, still = torch.fft.rfft2(change, size), change.norm(), bool(change.abs().mean() < STILL)
        if last is not None:
            before, before_norm, was_still = last
            likeness = luma.new_tensor(torch.nan if still and was_still else 0.0)
            if not still and not was_still:
                peak = torch.fft.irfft2(spectrum * before.conj(), size).amax()
                likeness = (peak / (norm * before_norm)).clamp(0, 1)
            found.append(likeness)
        last = spectrum, norm, still
    return torch.stack(found) if found else luma.new_empty(0)


def _blurred(change: Tensor) -> Tensor:
    """(h,w) by binomials of 5 pixels along both axes, so that shifts by parts of a pixel are like whole ones."""
    weights = change.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(change[None, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[None, None, :, None]), weights[None, None, None])[0, 0]


def motion_changes(row: Tensor, rate: float) -> list[float]:
    """Times in seconds at which motion changes in frames (F,3,H,W) at `rate` a second: the middle of each run of frames
    into and out of which the picture changes less alike, by ABRUPT, than it does at most times of the clip."""
    likeness = likeness_of_changes(small_luma(row, SIDE))
    usual = likeness.nanquantile(0.75) if bool((likeness > 0).any()) else likeness.new_tensor(1.0)
    return [(1 + (run[0] + run[-1]) / 2) / rate for run in _runs(usual - likeness > ABRUPT)]


def sound_onsets(wave: Tensor, rate: float) -> list[float]:
    """Times in seconds at which the sound (C,N) grows by RISE decibels within BEFORE seconds, to AUDIBLE at least."""
    hop = max(1, round(rate * HOP))
    mono = wave.detach().float().cpu().mean(0)
    blocks = mono[: len(mono) // hop * hop].view(-1, hop)
    levels = 10 * blocks.square().mean(1).clamp(min=10 ** (FLOOR / 10)).log10()  # (T,) dB
    if not len(levels):
        return []
    span = round(BEFORE / HOP)
    padded = torch.cat([levels[:1].expand(span), levels])  # what sounds from the first moment on has no onset
    lowest = padded.unfold(0, span + 1, 1)[:, :-1].amin(1)
    rising = (levels - lowest >= RISE) & (levels >= AUDIBLE)
    return [run[0] * hop / rate for run in _runs(rising)]


def _runs(where: Tensor) -> list[list[int]]:
    """The places in a row at which (T,) bool holds."""
    runs: list[list[int]] = []
    for place in where.nonzero()[:, 0].tolist():
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
