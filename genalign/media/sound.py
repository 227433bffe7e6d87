"""What is measured of a sound, without any model: its loudness, and how much of it is clipped, silent or clicks."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.ndimage import maximum_filter1d
from torch import Tensor

from genalign.types import UsageError

BLOCK = 0.4  # seconds over which loudness is measured first (ITU-R BS.1770-4)
FULL, FLAT = (
    0.999,
    2**-15,
)  # the level of full scale, and how little samples of a clipped peak differ: a step of 16 bits
WINDOW, SILENT = 0.05, -60.0  # seconds, and decibels below full scale, of a window that is silent
NEAR, FAR = (
    0.0005,
    0.025,
)  # seconds around a click that it takes itself, and in which nothing else is like it: a period of 40 Hz
ABRUPT = 3.0  # how much larger a click's fourth difference is than any other that near
HEARD = 0.1  # of the loudest sample: a lone sample of a sixtieth of that has it, and is hardly heard


def loudness(wave: Tensor, rate: float) -> float:
    """The integrated loudness of (C,N) in LUFS (ITU-R BS.1770-4); minus infinity of what is too soft to count.

    Raises:
        UsageError: shorter than 0.4 s, more than 5 channels, or pyloudnorm is not installed.
    """
    meter = _meter(rate)
    channels, samples = wave.shape
    if samples < math.ceil(BLOCK * rate) or channels > 5:
        limits = f"{BLOCK} s at least and five channels at most"
        raise UsageError(f"loudness is measured over {limits}, not {samples / rate:.3g} s of {channels} channels")
    return float(meter.integrated_loudness(wave.detach().double().cpu().T.numpy()))


def _meter(rate: float) -> Any:
    try:
        from pyloudnorm import Meter
    except ImportError as error:
        raise UsageError("loudness needs pyloudnorm; pip install 'genalign[audio]'") from error
    return Meter(rate)


def clipped(wave: Tensor) -> float:
    """The share of samples of (C,N) that stay at full scale with a neighbour: a lone peak that reaches it is whole."""
    if wave.shape[1] < 2:
        return 0.0
    high = wave.abs() >= FULL
    flat = high[:, 1:] & high[:, :-1] & (wave.diff(dim=1).abs() <= FLAT)
    within = torch.zeros_like(high)
    within[:, 1:] |= flat
    within[:, :-1] |= flat
    return float(within.float().mean())


def silent(wave: Tensor, rate: float) -> float:
    """The share of windows of 50 ms of (C,N) whose level is below -60 dB of full scale."""
    size = max(1, round(WINDOW * rate))
    mono = wave.float().square().mean(0)
    whole = mono[: len(mono) // size * size] if len(mono) >= size else mono
    levels = whole.view(-1, size).mean(1) if len(mono) >= size else whole.mean()[None]
    return float((10 * levels.clamp(min=1e-12).log10() < SILENT).float().mean())


def clicks(wave: Tensor, rate: float) -> list[float]:
    """Times in seconds of clicks in (C,N): a sample or step whose fourth difference, which music has little
    of, stands alone among its neighbours.

    What goes on after it, as the ringing of a struck string or a drum does, is no click.
    """
    near, far = max(2, round(NEAR * rate)), max(4, round(FAR * rate))
    bends = wave.float().diff(n=4, dim=1).abs().amax(0)  # (N-4,)
    padded = torch.nn.functional.pad(bends, (far, far))
    size = far - near
    highest = torch.from_numpy(maximum_filter1d(padded.numpy(), size, origin=-(size // 2)))  # of `size` from each on
    before, after = highest[: len(bends)], highest[far + near + 1 : far + near + 1 + len(bends)]
    within = torch.from_numpy(maximum_filter1d(bends.numpy(), 2 * near + 1))
    alone = (bends > ABRUPT * torch.maximum(before, after)) & (bends >= within)
    times = torch.nonzero(alone & (bends > HEARD * wave.abs().amax())).flatten()
    return [float(time + 2) / rate for time in times]
