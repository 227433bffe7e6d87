"""Rules about sound against the calibration of BS.1770, counts by hand, and sounds that were written note by note."""

from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import torch
from scipy import signal
from torch import Tensor

from genalign.media.sound import clicks, clipped, loudness, silent
from genalign.reward import Runner, build_reward
from genalign.reward.heads.sound import onset_strength, pitch_classes
from genalign.types import Media, Track, UsageError
from tests.helpers.toy_rewards import prompts

RULES = ("loudness", "clipping", "silence", "clicks", "steady-beat", "one-key")
RATE = 16_000


def tone(frequency: float = 440.0, seconds: float = 3.0, peak: float = 0.5, rate: int = RATE) -> Tensor:
    return peak * torch.sin(2 * torch.pi * frequency * torch.arange(round(seconds * rate)) / rate)[None]


def struck(times: Any, numbers: Any, seconds: float = 4.0) -> Tensor:
    """Decaying tones at these times in seconds, of these MIDI numbers."""
    wave = torch.zeros(1, round(seconds * RATE))
    for time, number in zip(times, numbers, strict=True):
        start = round(float(time) * RATE)
        length = min(RATE // 2, wave.shape[1] - start)
        at = torch.arange(length) / RATE
        pitch = 440 * 2 ** ((number - 69) / 12)
        begin = (at / 0.004).clamp(max=1)  # a tone that began at once would click
        wave[0, start : start + length] += 0.3 * begin * torch.sin(2 * torch.pi * pitch * at) * (-8 * at).exp()
    return wave


def score(use: str, *waves: Tensor, rate: float = RATE, **settings: Any) -> list[float | None]:
    """None where it abstains."""
    scores = build_reward({"use": use, **settings}, Path())(prompts(len(waves)), Media(audio=Track(list(waves), rate)))
    assert not scores.failed.any()
    return [float(total) if valid else None for total, valid in zip(scores.total, scores.total_valid, strict=True)]


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_loudness_is_that_of_the_standard(rate: int) -> None:
    """BS.1770-4: a sine of 997 Hz at full scale in one channel measures -3.01 LUFS, in both channels 3.01 more."""
    full = tone(997.0, peak=1.0, rate=rate)
    assert loudness(full, rate) == pytest.approx(-3.01, abs=0.1)
    assert loudness(torch.cat([full, full]), rate) == pytest.approx(0.0, abs=0.1)
    assert loudness(full / 10, rate) == pytest.approx(-23.01, abs=0.1)
    assert loudness(0 * full, rate) == -float("inf")
    noise = 0.1 * torch.randn(2, 2 * rate, generator=torch.Generator().manual_seed(0))
    oracle = pyloudnorm.Meter(rate).integrated_loudness(noise.T.double().numpy())
    assert loudness(noise, rate) == pytest.approx(oracle, abs=1e-3)


def test_loudness_is_best_within_its_range() -> None:
    within, soft, loud, none = score(
        "loudness", tone(997, peak=0.2), tone(997, peak=0.02), tone(997, peak=1.0), 0 * tone()
    )
    assert within == 1
    assert soft == pytest.approx(6 / (6 + 36.99 - 18), abs=0.01)
    assert loud == pytest.approx(6 / (6 + 14 - 3.01), abs=0.01)
    assert none == 0


def test_clipped_samples_are_those_that_stay_at_full_scale() -> None:
    wave = torch.tensor([[0.0, 1.0, 1.0, 1.0, 0.0, -1.0, -1.0, 0.3, 1.0, 0.2]])
    assert clipped(wave) == pytest.approx(5 / 10)  # the last peak is alone
    assert clipped(tone(peak=1.0)) == 0
    assert clipped(torch.ones(1, 1)) == 0
    cut = (3 * tone(peak=1.0)).clamp(-1, 1)
    share = 1 - 2 * np.arcsin(1 / 3) / np.pi  # of a sine's time above a third of its peak
    assert clipped(cut) == pytest.approx(share, abs=0.01)
    whole, spoilt = score("clipping", tone(), cut)
    assert whole == 1
    assert spoilt == pytest.approx(0.002 / (0.002 + share), rel=0.02)


def test_silence_is_a_share_of_the_time() -> None:
    half = tone()
    half[:, RATE : 2 * RATE] = 0
    assert silent(half, RATE) == pytest.approx(1 / 3, abs=0.02)
    assert score("silence", tone(), half, 0 * half) == pytest.approx([1, 2 / 3, 0], abs=0.02)
    assert silent(torch.zeros(1, 1), RATE) == 1


def test_clicks_are_found_where_they_are() -> None:
    wave = tone()
    wave[0, 5000] += 0.2  # one sample
    wave[0, 20_000:] *= -1  # a step
    assert clicks(wave, RATE) == pytest.approx([5000 / RATE, 20_000 / RATE], abs=2e-4)
    assert clicks(torch.cat([wave, wave]), RATE) == clicks(wave, RATE)
    assert clicks(struck(np.arange(8) / 2, [60] * 8), RATE) == []  # a note that begins rings on
    noise = 0.2 * torch.randn(1, 3 * RATE, generator=torch.Generator().manual_seed(0))
    assert clicks(noise, RATE) == []
    assert clicks(torch.zeros(1, 3), RATE) == []
    saw = torch.from_numpy(signal.sawtooth(2 * np.pi * 80 * np.arange(RATE) / RATE).astype(np.float32))[None]
    assert clicks(0.5 * saw, RATE) == []  # its steps come again and again


def test_a_steady_beat_is_steadier_than_a_loose_one() -> None:
    rng = np.random.default_rng(0)
    even = np.arange(0.1, 3.9, 0.4)
    loose = even + rng.uniform(-0.06, 0.06, len(even)).clip(-0.09)
    random = np.sort(rng.uniform(0.1, 3.8, len(even)))
    numbers = rng.choice([60, 62, 64, 67], len(even))
    found = score("steady-beat", *(struck(times, numbers) for times in (even, loose, random)), torch.zeros(1, 4 * RATE))
    assert found[0] > 0.75  # type: ignore[operator]
    assert found[0] > found[1] + 0.2  # type: ignore[operator]
    assert found[1] > found[2] - 0.1  # type: ignore[operator]
    assert found[3] is None
    flux, hop = onset_strength(struck([1.0], [60]), RATE)
    assert float(flux.argmax()) * hop == pytest.approx(1.0, abs=0.04)  # windows of 32 ms


def test_one_key_is_the_share_of_one_scale() -> None:
    times = np.arange(12) / 3
    scale = struck(times, [62, 64, 66, 67, 69, 71, 73, 74, 73, 69, 66, 62])  # D major
    chromatic = struck(times, range(60, 72))
    found = score("one-key", scale, chromatic, torch.zeros(1, 4 * RATE))
    assert found[0] > 0.9  # type: ignore[operator]
    assert found[1] < 0.3  # type: ignore[operator]
    assert found[2] is None
    classes = pitch_classes(tone(440.0), RATE)
    assert int(classes.argmax()) == 9
    assert float(classes.max() / classes.sum()) > 0.99


def test_channels_and_rates_change_nothing() -> None:
    wave = struck(np.arange(8) / 2, [60, 64, 67, 72, 60, 64, 67, 72])
    double = torch.from_numpy(signal.resample_poly(wave.numpy(), 2, 1, axis=1).astype(np.float32))
    for rule in ("steady-beat", "one-key", "silence", "clipping"):
        (once,) = score(rule, wave)
        assert score(rule, torch.cat([wave, wave])) == pytest.approx([once])
        assert score(rule, double, rate=2 * RATE) == pytest.approx([once], abs=0.05)


@pytest.mark.parametrize("use", RULES)
def test_bad_sounds_fail_in_words_and_alone(use: str) -> None:
    broken, short = tone(), tone()[:, :1]
    broken[0, 7] = float("nan")
    good = struck(np.arange(8) / 2, [60] * 8)
    rows = [good, broken, short, good[:, :0]]
    reward = Runner(build_reward({"use": use}, Path()), max_failure=1.0)
    scores = reward(prompts(4), Media(audio=Track(rows, RATE)))
    assert scores.total_valid[0]
    assert scores.failed[[1, 3]].all()
    alone = build_reward({"use": use}, Path())(prompts(1), Media(audio=Track([good], RATE)))
    assert float(alone.total[0]) == float(scores.total[0])
    if use in ("loudness", "steady-beat", "one-key"):
        assert scores.failed[2]
        faults = build_reward({"use": use}, Path()).faults(prompts(4), Media(audio=Track(rows, RATE)))
        assert "1 samples is too short" in str(faults[2])


def test_a_rule_without_a_rate_or_with_a_strange_setting_says_so() -> None:
    with pytest.raises(UsageError, match="needs the sample rate of the audio"):
        build_reward({"use": "silence"}, Path())(prompts(1), Media(audio=Track(tone()[None])))
    with pytest.raises(UsageError, match="half of reward 'clicks' is 0; it must be above 0"):
        build_reward({"use": "clicks", "half": 0}, Path())
    with pytest.raises(UsageError, match=r"low of reward 'loudness' is -10.0, above high, -20.0"):
        build_reward({"use": "loudness", "low": -10.0, "high": -20.0}, Path())
    with pytest.raises(UsageError, match=r"loudness is measured over 0.4 s at least"):
        loudness(torch.zeros(1, 10), RATE)


@pytest.mark.parametrize("file", ["sound-rules.yaml", "music-rules.yaml"])
def test_the_shipped_files_put_a_clean_sound_first(file: str) -> None:
    even = struck(np.arange(0.1, 3.9, 0.4), [60, 62, 64, 65, 67, 65, 64, 62, 60, 60])
    spoilt = (20 * even).clamp(-1, 1)
    scores = build_reward({"use": file}, Path())(prompts(3), Media(audio=Track([even, spoilt, 0 * even], RATE)))
    assert scores.total[0] > scores.total[1] > scores.total[2]
