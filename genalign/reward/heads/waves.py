"""Waveforms as audio models read them: mono, at a given rate, as log-mel frames; differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.reward.base import tensor_rows
from genalign.types import Media, UsageError


def mono_waves(media: Media, rate: int, reward: str) -> list[Tensor]:
    """Each row's audio as one channel (N,) in fp32 at `rate` samples a second: the mean of its channels, resampled.

    Raises:
        UsageError: the track has no sample rate.
    """
    track, waves = media["audio"], []
    for row, wave in enumerate(tensor_rows(track)):
        own = track.rate_of(row)
        if not own:
            raise UsageError(f"reward {reward!r} needs the sample rate of the audio; give Track(audio, rate)")
        waves.append(resampled(wave.float().mean(0), round(own), rate))
    return waves


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


def log_mel(waves: Tensor, filters: Tensor, frame: int, hop: int) -> Tensor:
    """(B,N) -> (B, 1 + N // hop, mels) in decibels: power of Hann frames, centred, through `filters` (bins, mels)."""
    window = torch.hann_window(frame, dtype=waves.dtype, device=waves.device)
    spectrum = torch.stft(waves, frame, hop, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum.real**2 + spectrum.imag**2  # (B,bins,T)
    return 10 * torch.log10((power.transpose(1, 2) @ filters.to(power)).clamp(min=1e-10))
