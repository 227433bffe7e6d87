"""The sound of EmojiWorld moves: a knock at every bounce, and at which times a waveform knocks."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from genalign.lab.moves_clips import FRAMES, RATE

SAMPLE_RATE = 16_000
SAMPLES = int(FRAMES / RATE * SAMPLE_RATE)  # a clip's 1.125 seconds
PITCH = 330.0  # Hz
DECAY = 0.02  # seconds in which a knock falls to 1/e
HOP = 80  # samples over which loudness is measured: 5 ms
APART = 0.1  # seconds between knocks that count as two
LOUD, QUIET = 0.3, 0.02  # of the loudest, and of full scale: what is no knock


def knocks(contacts: Sequence[int]) -> np.ndarray:
    """(1, 18000) float32 in [-1, 1] at 16 kHz: silence, and a damped tone that begins with each of these frames."""
    wave = np.zeros(SAMPLES)
    for frame in contacts:
        start = round(frame / RATE * SAMPLE_RATE)
        time = np.arange(SAMPLES - start) / SAMPLE_RATE
        wave[start:] += 0.8 * np.exp(-time / DECAY) * np.cos(2 * np.pi * PITCH * time)
    return wave.clip(-1, 1).astype(np.float32)[None]


def onsets(wave: np.ndarray, sample_rate: float) -> list[float]:
    """Times in seconds at which a waveform (channels, samples) in [-1, 1] suddenly becomes loud.

    Raises:
        ValueError: not (channels, samples), or no sample rate.
    """
    if wave.ndim != 2 or not sample_rate > 0:
        raise ValueError(f"onsets reads (channels, samples) and a sample rate, not {wave.shape} at {sample_rate} Hz")
    hop = max(1, round(HOP * sample_rate / SAMPLE_RATE))
    mono = np.abs(wave.mean(axis=0, dtype=np.float64))
    windows = np.pad(mono, (0, -len(mono) % hop)).reshape(-1, hop)
    loud = np.sqrt((windows**2).mean(axis=1))
    if not len(loud) or loud.max() < QUIET:
        return []
    # the noise before it, at most what was heard in the last 25 ms; a tone that only goes on does not begin
    before = np.concatenate([[0.0], ndimage.maximum_filter1d(loud, 5, origin=2)[:-1]])
    rises = (loud > LOUD * loud.max()) & (loud > 2 * before)
    times: list[float] = []
    for window in np.flatnonzero(rises):
        time = float(window * hop / sample_rate)
        if not times or time - times[-1] >= APART:
            times.append(time)
    return times
