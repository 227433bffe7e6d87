"""Rules about clips against loops over pixels, and clips whose motion and sound were drawn by hand."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import Tensor

from genalign.media.frames import measure, small_luma
from genalign.reward import Runner, build_reward
from genalign.reward.heads.motion import likeness_of_changes, motion_changes, sound_onsets
from genalign.types import Media, Track, UsageError
from tests.helpers.clips import bouncing, gliding, knocks, path_of
from tests.helpers.toy_rewards import prompts

RULES = ("moving", "steady", "smooth-motion")


def score(use: str, *clips: Tensor, sound: list[Tensor] | None = None, **settings: Any) -> list[float | None]:
    """None where it abstains."""
    tracks = {"video": Track(list(clips), 8.0)}
    if sound is not None:
        tracks["audio"] = Track(sound, 8000.0)
    scores = build_reward({"use": use, **settings}, Path())(prompts(len(clips)), Media(**tracks))
    assert not scores.failed.any()
    return [float(total) if valid else None for total, valid in zip(scores.total, scores.total_valid, strict=True)]


def test_moving_is_the_share_of_frames_that_differ() -> None:
    stuck = gliding()[[0, 0, 1, 1, 1, 2, 3, 4, 5]]  # 3 of 8 steps change nothing
    assert score("moving", gliding(), stuck, gliding()[[0] * 9]) == pytest.approx([1.0, 5 / 8, 0.0])


@pytest.mark.parametrize("amplitude", [0.02, 0.1])
def test_steady_is_half_where_colours_alternate_by_half(amplitude: float) -> None:
    """Alternating by a: a frame lies a off the middle of its neighbours."""
    sign = torch.tensor([1.0, -1.0] * 4)[:, None, None, None]
    flickering = 0.5 + amplitude / 2 * sign.expand(8, 3, 16, 16)
    fade = torch.linspace(0.1, 0.9, 8)[:, None, None, None].expand(8, 3, 16, 16)
    found = score("steady", flickering, fade, gliding(), half=0.02)
    assert found == pytest.approx([0.02 / (0.02 + amplitude), 1.0, 1.0], abs=1e-4)


def test_likeness_is_the_peak_of_normalised_cross_correlation() -> None:
    """The oracle: scipy's full correlation of blurred differences, in float64, over every shift."""
    luma = torch.rand(5, 12, 17, generator=torch.Generator().manual_seed(1))
    binomial = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256
    changes = []
    for before, after in zip(luma[:-1].double().numpy(), luma[1:].double().numpy(), strict=True):
        changes.append(correlate2d(np.pad(after - before, 2, mode="edge"), binomial, mode="valid"))
    wanted = []
    for before, after in pairwise(changes):
        peak = correlate2d(after, before, mode="full").max()
        wanted.append(max(0.0, peak / np.linalg.norm(before) / np.linalg.norm(after)))
    assert likeness_of_changes(luma).tolist() == pytest.approx(wanted, abs=1e-5)


def test_smooth_motion_in_the_order_that_eyes_give() -> None:
    jerky = path_of([(18, 2 + 6 * (number // 2)) for number in range(9)])
    wild = path_of([(18, x) for x in (2, 30, 8, 21, 4, 33, 15, 27, 1)])
    still = gliding()[[0] * 9]
    smooth, bounce, jumps, stutter, rest = score("smooth-motion", gliding(), bouncing(), wild, jerky, still)
    assert smooth == pytest.approx(1.0, abs=1e-3)
    assert 0.85 < bounce < smooth  # type: ignore[operator]
    assert jumps < 0.7  # type: ignore[operator]
    assert stutter == 0.0
    assert rest is None
    (drifting,) = score("smooth-motion", path_of([(18, 2 + 3 * k) for k in range(9)], torch.rand(3, 48, 48) * 0.1))
    assert drifting > 0.95  # type: ignore[operator]  # a background that stands still does not count


@pytest.mark.parametrize("turn", [2, 3, 4, 6])
def test_motion_changes_at_the_bounce(turn: int) -> None:
    assert motion_changes(bouncing(turn, speed=3), 8.0) == [turn / 8]
    assert motion_changes(gliding(), 8.0) == []
    stopping = path_of([(18, 2 + 3 * min(number, turn)) for number in range(9)])
    assert motion_changes(stopping, 8.0) == [turn / 8]
    starting = path_of([(18, 2 + 3 * max(number - turn, 0)) for number in range(9)])
    assert motion_changes(starting, 8.0) == [turn / 8]


def test_onsets_are_where_knocks_begin() -> None:
    moments = [0.2, 0.55, 0.9]
    assert sound_onsets(knocks(moments, 1.125), 8000.0) == pytest.approx(moments, abs=0.011)
    noise = 0.003 * torch.randn(1, 9000, generator=torch.Generator().manual_seed(0))
    assert sound_onsets(knocks(moments, 1.125) + noise, 8000.0) == pytest.approx(moments, abs=0.011)
    assert sound_onsets(noise, 8000.0) == []
    hum = 0.3 * torch.sin(torch.arange(9000) / 10)[None]
    assert sound_onsets(hum, 8000.0) == []  # it sounds from the first moment on


def test_synchrony_falls_with_the_distance_of_sound_and_motion() -> None:
    """One bounce at 0.5 s and one knock: closeness is 1 within half a frame (1/16 s), then a Gaussian of 0.1 s."""
    late = [0.0, 0.05, 0.1, 0.2, 0.4]
    found = score("synchrony", *[bouncing()] * 5, sound=[knocks([0.5 + by], 1.125) for by in late])
    wanted = [math.exp(-0.5 * (max(0.0, by - 1 / 16) / 0.1) ** 2) for by in late]
    assert found == pytest.approx(wanted, abs=0.08)
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    assert found[0] == 1.0


def test_each_sound_is_given_to_one_motion() -> None:
    silence = torch.zeros(1, 9000)
    two, spare, mute, lone, nothing = score(
        "synchrony",
        *(bouncing(), bouncing(), bouncing(), gliding(), gliding()),
        sound=[knocks([0.5, 0.51 + 0.3], 1.125), knocks([0.45, 0.62], 1.125), silence, knocks([0.5], 1.125), silence],
    )
    assert two == pytest.approx(2 / 3, abs=0.02)  # one of two knocks meets the bounce; the other is 0.31 s off
    assert spare == pytest.approx(2 / 3, abs=0.02)  # both are near, but there is one bounce
    assert mute == 0.0
    assert lone == 0.0
    assert nothing is None


def test_what_a_rule_needs_and_what_it_abstains_from() -> None:
    rule = Runner(build_reward("synchrony", Path()), max_failure=0.0)
    scores = rule(prompts(2), Media(video=Track(torch.stack([bouncing()] * 2), 8.0)))  # clips without sound
    assert not scores.failed.any()
    assert not scores.valid.any()
    for use in RULES:
        scores = build_reward(use, Path())(prompts(1), Media(image=Track(torch.rand(1, 3, 8, 8))))
        assert not scores.failed.any()
        assert not scores.total_valid.any()
    with pytest.raises(UsageError, match=r"'synchrony' needs the rates of video and audio; give Track\(video, rate\)"):
        build_reward("synchrony", Path())(
            prompts(1), Media(video=Track(bouncing()[None]), audio=Track(knocks([0.5], 1.0)[None], 8000.0))
        )
    for key, use in (("half", "steady"), ("tolerance", "synchrony")):
        with pytest.raises(UsageError, match=f"{key} of reward '{use}' is 0"):
            build_reward({"use": use, key: 0}, Path())


@pytest.mark.parametrize(("use", "least"), [("moving", 2), ("steady", 3), ("smooth-motion", 3)])
def test_a_clip_that_is_too_short_fails_alone(use: str, least: int) -> None:
    clips = Track([gliding(), gliding(least - 1)], 8.0)
    scores = build_reward(use, Path())(prompts(2), Media(video=clips))
    assert scores.total_valid.tolist() == [True, False]
    short = f"a video of {least - 1} frames is too short for {use}; {least} are the least"
    assert scores.info["error"] == [None, short]


@pytest.mark.parametrize("use", [*RULES, "synchrony"])
def test_a_score_depends_on_no_neighbour_and_on_no_storage(use: str) -> None:
    clips = torch.stack([bouncing(), gliding(), bouncing(3)])
    sounds = torch.stack([knocks([0.5 + 0.1 * k], 1.125) for k in range(3)])
    media = Media(video=Track(clips, 8.0), audio=Track(sounds, 8000.0))
    rule = build_reward(use, Path())
    together = rule(prompts(3), media)
    alone = [rule(prompts(1), media.select([row])).total for row in range(3)]
    assert torch.equal(torch.cat(alone), together.total)
    assert torch.allclose(rule(prompts(3), media.compact()).total, together.total, atol=0.01)


def test_measures_by_hand_over_more_frames_than_are_held_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("genalign.types.samples.CHUNK", 5 * 3 * 6 * 10)
    frames = torch.rand(37, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    found, plain = measure(frames), frames.double().numpy()
    np.testing.assert_allclose(found.colours, plain.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(found.changes, np.abs(np.diff(plain, axis=0)).mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found.saturation, (plain.max(1) - plain.min(1)).mean((1, 2)), atol=1e-6)
    luma = np.tensordot(plain, [0.299, 0.587, 0.114], (1, 0))
    assert found.brightness == pytest.approx(luma.mean(), abs=1e-6)
    np.testing.assert_allclose(small_luma(frames, 64), luma, atol=1e-6)
    halves = luma.reshape(37, 3, 2, 5, 2).mean((2, 4))
    np.testing.assert_allclose(small_luma(frames, 5), halves, atol=1e-6)
