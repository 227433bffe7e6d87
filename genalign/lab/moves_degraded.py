"""Clips that are worse in one way, and the verifier's aspect that each is about: what rewards of video learn from."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from genalign.lab.moves_clips import FRAMES, Clip, render

SHIFTS = ((1.15, 0.95, 0.4), (0.4, 0.95, 1.15), (0.45, 0.45, 0.45))  # gains of red, green, blue: warm, cold, dark


def jerky(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """The frames in another order, whose indices are themselves jerky: the middle third difference is at least 4."""
    while True:
        order = rng.permutation(FRAMES)
        if np.median(np.abs(np.diff(order, n=3))) >= 4:
            return render(clip, rng)[order]


def frozen(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """One frame all the time."""
    return render(clip, rng)[[int(rng.integers(FRAMES))] * FRAMES]


def flickering(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """Every second or third frame nearly empty."""
    opacity = np.ones(FRAMES)
    opacity[1 :: int(rng.integers(2, 4))] = rng.uniform(0, 0.4)
    return _faded(clip, opacity, rng)


def vanished(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """From a frame of the second half on nothing is there."""
    return _faded(clip, (np.arange(FRAMES) < rng.integers(4, 8)).astype(float), rng)


def drifting(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """All colours change from frame to frame, by the end into another light."""
    share = np.linspace(0, 1, FRAMES)[:, None, None, None]
    gains = np.asarray(SHIFTS[int(rng.integers(len(SHIFTS)))])[:, None, None]
    return np.asarray(render(clip, rng) * (1 + share * (gains - 1)), np.float32).clip(0, 1)


def _faded(clip: Clip, opacity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clip as it is where opacity (9,) is 1, its empty ground where it is 0."""
    seed = int(rng.integers(2**32))
    shown, empty = (render(each, np.random.default_rng(seed)) for each in (clip, replace(clip, paths=())))
    return np.asarray(empty + opacity[:, None, None, None] * (shown - empty), np.float32)


DEGRADATIONS: dict[str, tuple[str, Callable[[Clip, np.random.Generator], np.ndarray]]] = {
    "jerky": ("smoothness", jerky),
    "frozen": ("motion", frozen),
    "flickering": ("permanence", flickering),
    "vanished": ("permanence", vanished),
    "drifting": ("style", drifting),
}
