"""Audio as heads take it: one channel, at their rate."""

import math

import pytest
import torch
from scipy.signal import resample_poly

from genalign.media.resample import resampled
from genalign.reward.heads.waves import mono_waves
from genalign.types import Media, Track, UsageError


@pytest.mark.parametrize(("old", "new"), [(16000, 48000), (44100, 16000), (48000, 16000), (22050, 48000)])
def test_resampling_keeps_a_tone_a_tone(old: int, new: int) -> None:
    """Invariant 6."""
    seconds, frequency = 0.2, 440.0
    wave = torch.sin(2 * math.pi * frequency * torch.arange(int(old * seconds)) / old)
    got = resampled(wave, old, new)
    ideal = torch.sin(2 * math.pi * frequency * torch.arange(len(got)) / new)
    assert len(got) == math.ceil(new * len(wave) / old)
    middle = slice(len(got) // 5, -len(got) // 5)
    assert (got - ideal)[middle].abs().max() < 5e-3
    shrink = math.gcd(old, new)
    peer = torch.from_numpy(resample_poly(wave.numpy(), new // shrink, old // shrink))
    assert (got[middle] - peer[: len(got)][middle]).abs().max() < 2e-2


def test_each_channel_of_each_sound_is_resampled_alone() -> None:
    waves = torch.randn(3, 2, 1000, generator=torch.Generator().manual_seed(0))
    made = resampled(waves, 16_000, 6_000)
    assert made.shape == (3, 2, 375)
    torch.testing.assert_close(made[1, 0], resampled(waves[1, 0], 16_000, 6_000), rtol=0, atol=1e-6)
    assert resampled(torch.zeros(2, 0), 16_000, 8_000).shape == (2, 0)


def test_audio_is_mono_at_the_models_rate_or_refused() -> None:
    """Invariant 6."""
    stereo = torch.stack([torch.ones(2, 100), torch.stack([torch.ones(100), -torch.ones(100)])])
    waves = mono_waves(Media(audio=Track(stereo, rate=8000)), 8000, "x")
    assert torch.equal(waves[0], torch.ones(100))
    assert torch.equal(waves[1], torch.zeros(100))
    with pytest.raises(UsageError, match="sample rate"):
        mono_waves(Media(audio=Track(stereo)), 8000, "x")
