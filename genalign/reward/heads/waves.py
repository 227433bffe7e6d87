"""Waveforms as audio models read them: mono, at a given rate, as log-mel frames; differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

from genalign.media.resample import resampled
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


def log_mel(waves: Tensor, filters: Tensor, frame: int, hop: int) -> Tensor:
    """(B,N) -> (B, 1 + N // hop, mels) in decibels: power of Hann frames, centred, through `filters` (bins, mels)."""
    window = torch.hann_window(frame, dtype=waves.dtype, device=waves.device)
    spectrum = torch.stft(waves, frame, hop, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = spectrum.real**2 + spectrum.imag**2  # (B,bins,T)
    return 10 * torch.log10((power.transpose(1, 2) @ filters.to(power)).clamp(min=1e-10))
