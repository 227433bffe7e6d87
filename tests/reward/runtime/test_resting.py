"""A reward whose networks are on the device while it scores, and not else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genalign.reward import Runner, build_reward
from genalign.reward.runtime.resting import Resting, networks_of
from genalign.reward.wrapper import Wrapper
from genalign.types import GenalignError, Media, Prompt, Track

PROMPTS = [Prompt("two red apples", uid=k) for k in range(3)]
SUM = {"sum": [{"use": "clip", "model": "tiny-clip"}, {"use": "sharpness"}]}


class Poisoned(Resting):
    """There may be no other device than the CPU: what is away holds NaN."""

    def __init__(self, reward: Any) -> None:
        super().__init__(reward)
        self.kept: dict[int, list[torch.Tensor]] = {}

    def send_away(self, network: nn.Module) -> None:
        self.kept[id(network)] = [p.detach().clone() for p in network.parameters()]
        for parameter in network.parameters():
            parameter.data.fill_(torch.nan)

    def bring(self, network: nn.Module, device: torch.device) -> None:
        for parameter, kept in zip(network.parameters(), self.kept.pop(id(network)), strict=True):
            parameter.data.copy_(kept)


def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_scores_are_the_same_and_between_calls_the_networks_are_away() -> None:
    plain, resting = build_reward(SUM, Path()), Poisoned(build_reward(SUM, Path()))
    media = Media(image=Track(pictures()))
    wanted = plain(PROMPTS, media)
    for _ in range(2):
        scores = Runner(resting)(PROMPTS, media)
        torch.testing.assert_close(scores.values, wanted.values, rtol=0, atol=0)
        networks = list(networks_of(resting.reward))
        assert networks  # CLIP's
        assert all(p.isnan().all() for network in networks for p in network.parameters())


def test_a_graph_to_the_pixels_keeps_them_there_until_the_next_call() -> None:
    plain, resting = build_reward(SUM, Path()), Poisoned(build_reward(SUM, Path()))
    slopes = []
    for reward in (plain, resting):
        x = pictures().requires_grad_()
        reward(PROMPTS, Media(image=Track(x))).total.sum().backward()
        slopes.append(x.grad)
    assert isinstance(slopes[0], torch.Tensor)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=0, atol=0)
    resting(PROMPTS, Media(image=Track(pictures())))
    assert resting.kept


def test_what_comes_to_score_scores_nothing_beside_sampling() -> None:
    reward = build_reward(SUM, Path())
    assert Runner(reward).prefetches(frozenset({"image"}))
    assert not Runner(Resting(reward)).prefetches(frozenset({"image"}))


class Raising(Wrapper):
    """Its networks load, and then it fails."""

    def __call__(self, prompts: Any, media: Any, group: Any = None) -> Any:
        self.reward(prompts, media, group)
        raise GenalignError("no")


def test_a_reward_that_fails_leaves_too() -> None:
    resting = Poisoned(Raising(build_reward(SUM, Path())))
    with pytest.raises(GenalignError, match="no"):
        resting(PROMPTS, Media(image=Track(pictures())))
    assert resting.kept
