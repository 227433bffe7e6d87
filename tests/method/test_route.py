"""Advantages by medium: against rewards that score one medium alone, and against the whole where nothing is routed."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from genalign.method.losses import advantages
from genalign.method.route import advantages_by_medium
from genalign.reward.base import needs_by_aspect
from genalign.reward.combine.algebra import Pick, Sum
from genalign.reward.function import reward
from genalign.reward.proxy import about as told
from genalign.reward.runtime.runner import Runner
from genalign.types import Media, Prompt, Track

GROUP = torch.arange(4).repeat_interleave(4)
PROMPTS = [Prompt("-", uid=uid) for uid in GROUP.tolist()]


@reward
def bright(video):
    return video.mean((1, 2, 3, 4))


@reward
def loud(audio):
    return [None if wave[0, 0] > 0.9 else float(wave.square().mean()) for wave in audio]  # abstains from some


@reward
def synchrony(video, audio):
    return video[:, 0].mean((1, 2, 3)) * audio.mean((1, 2))


@reward
def terse(prompt):
    return [float(k % 3) for k, _ in enumerate(prompt)]


def media() -> Media:
    drawn = torch.Generator().manual_seed(0)
    video = torch.rand(16, 2, 3, 4, 4, generator=drawn)
    return Media(video=Track(video, 8.0), audio=Track(torch.rand(16, 1, 9, generator=drawn), 100.0))


PARTS = [(bright, 1.0), (loud, 2.0), (synchrony, 0.5), (terse, -1.0)]


@pytest.mark.parametrize("rule", ["sum_then_normalise", "normalise_then_sum"])
@pytest.mark.parametrize("wrap", [lambda reward: reward, Runner])
def test_each_medium_hears_the_rewards_that_read_it_and_those_that_read_none(rule, wrap) -> None:
    normalise = partial(advantages, group=GROUP, rule=rule)
    whole = wrap(Sum(PARTS))
    scores = whole(PROMPTS, media(), GROUP)
    advantage, counted, log = advantages_by_medium(scores, GROUP, ("video", "audio"), whole, "modality", normalise)
    assert advantage.shape == (16, 2)
    for k, own in enumerate(([0, 2, 3], [1, 2, 3])):
        alone = Sum([PARTS[i] for i in own])
        expected, counts, _ = normalise(alone(PROMPTS, media(), GROUP))
        torch.testing.assert_close(advantage[:, k], expected, rtol=1e-4, atol=1e-5)
        assert bool((counted | ~counts).all())
    assert log == normalise(scores)[2]


def test_where_nothing_is_routed_the_advantages_are_those_of_the_sum() -> None:
    whole = Sum(PARTS)
    scores = whole(PROMPTS, media(), GROUP)
    rule = partial(advantages, group=GROUP)
    for about, route in (((), "modality"), (("video", "audio"), "sum")):
        advantage, counted, _ = advantages_by_medium(scores, GROUP, about, whole, route, rule)
        assert torch.equal(advantage, rule(scores)[0])
        assert torch.equal(counted, rule(scores)[1])


def test_a_medium_that_no_reward_reads_has_no_advantage() -> None:
    only = Sum([(bright, 1.0), (loud, 0.0)])  # weight 0 is for the log
    scores = only(PROMPTS, media(), GROUP)
    rule = partial(advantages, group=GROUP)
    advantage, counted, _ = advantages_by_medium(scores, GROUP, ("video", "audio"), only, "modality", rule)
    assert torch.equal(advantage[:, 0], rule(scores)[0])
    assert not advantage[:, 1].any()
    assert torch.equal(counted, rule(scores)[1])


def test_what_an_aspect_reads_is_known_through_whatever_stands_around_a_reward() -> None:
    inner = Sum([(loud, 1.0), (synchrony, 1.0)], name="inner")
    nested = Runner(Sum([(bright, 1.0), (inner, 0.5)]))
    read = [{"video"}, {"audio"}, {"video", "audio"}]
    assert [set(names) for names in needs_by_aspect(nested)] == read
    assert [set(names) for names in told(nested)["aspect_needs"]] == read
    picked = Pick(inner, "loud", name="picked")  # one number of its own, from all that its part reads
    assert needs_by_aspect(picked)[0] == {"video", "audio"}
