"""Rules about sound that need no model: loudness, clipping, silence, clicks, a steady beat, and notes of one key.

Each row is scored by itself; a batch without sound is abstained from. All are in [0,1], higher where a fault is less;
none asks whether the sound is music, or fits its prompt: combine them with a reward that does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genalign.media.resample import resampled
from genalign.media.sound import BLOCK, clicks, clipped, loudness, silent
from genalign.reward.heads.measure import Measure
from genalign.types import Media, UsageError

RATE, WINDOW, HOP = 16_000, 4096, 512  # of the spectra of beats and keys: samples a second, of a window, between two
LOWEST, HIGHEST = 40, 100  # MIDI numbers between which keys are heard: 80 Hz to 2.6 kHz
SCALE = (0, 2, 4, 5, 7, 9, 11)  # semitones of a major scale; those of its relative minor are the same
PACES = (60.0, 240.0)  # beats a minute that are looked for


class SoundRule(Measure):
    """What the rules share: `score` of one sound (C,N) at a rate, None where it says nothing of it. least: seconds that
    it must last."""

    needs = frozenset({"audio"})
    least = 0.0

    def score(self, wave: Tensor, rate: float) -> float | None:
        raise NotImplementedError

    def score_of(self, media: Media, row: int) -> float | None:
        track = media["audio"]
        rate = track.rate_of(row)
        if not rate:
            raise UsageError(f"reward {self.name!r} needs the sample rate of the audio; give Track(audio, rate)")
        return self.score(track.row(row).detach().float().cpu(), rate)

    def short(self, media: Media, row: int) -> str | None:
        rate, samples = media["audio"].rate_of(row), media["audio"].held[row].shape[-1]
        if not rate or samples >= self.least * rate:
            return None
        return f"a sound of {samples} samples is too short for {self.name}; {self.least} s are the least"


class Loudness(SoundRule):
    """score = half / (half + e) for a loudness of e decibels outside [low, high] LUFS (ITU-R BS.1770-4), in [0,1].

    The defaults hold what streaming services play at: -14 to -18. Silence has 0. Pipelines that normalise every
    waveform (ACE-Step's) leave this nothing to say.
    """

    least = BLOCK

    def __init__(self, *, low: float = -18.0, high: float = -14.0, half: float = 6.0, name: str = "loudness") -> None:
        super().__init__(name)
        if not low <= high:
            raise UsageError(f"low of reward {name!r} is {low}, above high, {high}; exchange them")
        self.low, self.high, self.half = float(low), float(high), _positive("half", half, name)
        self.settings = (self.low, self.high, self.half)

    def score(self, wave: Tensor, rate: float) -> float:
        level = loudness(wave, rate)
        return self.half / (self.half + max(self.low - level, level - self.high, 0.0))


class Clipping(SoundRule):
    """score = half / (half + the share of samples that are cut at full scale), in (0,1]; see `media.sound.clipped`."""

    def __init__(self, *, half: float = 0.002, name: str = "clipping") -> None:
        super().__init__(name)
        self.half = _positive("half", half, name)
        self.settings = (self.half,)

    def score(self, wave: Tensor, rate: float) -> float:
        return self.half / (self.half + clipped(wave))


class Silence(SoundRule):
    """score = 1 - the share of the time that is silent, below -60 dB of full scale over 50 ms, in [0,1]."""

    def __init__(self, *, name: str = "silence") -> None:
        super().__init__(name)

    def score(self, wave: Tensor, rate: float) -> float:
        return 1 - silent(wave, rate)


class Clicks(SoundRule):
    """score = half / (half + clicks a second), in (0,1]; see `media.sound.clicks`."""

    def __init__(self, *, half: float = 2.0, name: str = "clicks") -> None:
        super().__init__(name)
        self.half = _positive("half", half, name)
        self.settings = (self.half,)

    def score(self, wave: Tensor, rate: float) -> float:
        return self.half / (self.half + len(clicks(wave, rate)) * rate / wave.shape[-1])


class SteadyBeat(SoundRule):
    """How regularly sounds begin: the highest autocorrelation of their beginnings at a beat of 60 to 240 a minute.

    Beginnings are the spectral flux: by how much the lines of the spectrum, in decibels, grow from one window to the
    next. The autocorrelation is that of a stationary process, by its value at lag 0, in [0,1]: 1 of a metronome,
    near 0 of onsets at random. Sounds in which nothing begins are abstained from.
    """

    least = 2.0

    def __init__(self, *, name: str = "steady-beat") -> None:
        super().__init__(name)

    def score(self, wave: Tensor, rate: float) -> float | None:
        flux, hop = onset_strength(wave, rate)
        if not float(flux.max()) > 0:
            return None
        flux = flux - flux.mean()
        longest = min(round(60 / PACES[0] / hop), len(flux) - 2)
        lags = range(round(60 / PACES[1] / hop), longest + 1)
        whole = float(flux.square().mean())
        if whole <= 0 or not lags:
            return None
        found = [float((flux[lag:] * flux[:-lag]).mean()) / whole for lag in lags]
        return min(max(max(found), 0.0), 1.0)


class OneKey(SoundRule):
    """Does it stay in one key? How much of what sounds belongs to the best diatonic scale, in [0,1].

    Each line of the spectrum counts, by its magnitude, for the semitone that it is nearest to; of all twelve scales the
    one that holds most counts. 0 is the share that notes at random have, 7/12, and below; 1 none outside the scale.
    Silent sounds are abstained from.
    """

    least = WINDOW / RATE

    def __init__(self, *, name: str = "one-key") -> None:
        super().__init__(name)

    def score(self, wave: Tensor, rate: float) -> float | None:
        chroma = pitch_classes(wave, rate)
        if not float(chroma.sum()) > 0:
            return None
        shares = chroma / chroma.sum()
        best = max(float(sum(shares[(tonic + step) % 12] for step in SCALE)) for tonic in range(12))
        return max(0.0, (best - 7 / 12) * 12 / 5)


def onset_strength(wave: Tensor, rate: float) -> tuple[Tensor, float]:
    """(C,N) -> the spectral flux (T,), and the seconds between its values."""
    size, step = 512, 128
    levels = _spectrum(wave, rate, size, step)
    decibels = 20 * (levels / levels.max().clamp(min=1e-9)).clamp(min=1e-3).log10()  # 60 dB
    return decibels.diff(dim=1).clamp(min=0).mean(0), step / RATE


def pitch_classes(wave: Tensor, rate: float) -> Tensor:
    """(C,N) -> (12,): how much each semitone from C on sounds, all octaves of 80 Hz to 2.6 kHz together.

    Peaks of the spectrum alone count, so that noise and the flanks of a tone do not.
    """
    levels = _spectrum(wave, rate, WINDOW, HOP)
    inner = levels[1:-1]
    peaks = inner * ((inner > levels[:-2]) & (inner >= levels[2:]) & (inner > 0.03 * levels.max()))
    frequencies = torch.arange(1, len(levels) - 1) * RATE / WINDOW
    numbers = 69 + 12 * (frequencies / 440).log2()
    heard = (numbers >= LOWEST) & (numbers <= HIGHEST)
    classes = numbers.round().long() % 12
    return torch.zeros(12).index_add(0, classes[heard], peaks.sum(1)[heard])


def _spectrum(wave: Tensor, rate: float, size: int, step: int) -> Tensor:
    """(size/2 + 1, T) magnitudes of the mean of the channels at 16 kHz."""
    mono = resampled(wave.mean(0), round(rate), RATE)
    padded = torch.nn.functional.pad(mono, (0, max(0, size - len(mono))))
    return torch.stft(padded, size, step, window=torch.hann_window(size), center=False, return_complex=True).abs()


def _positive(what: str, value: float, name: str) -> float:
    if not value > 0:
        raise UsageError(f"{what} of reward {name!r} is {value}; it must be above 0")
    return float(value)
