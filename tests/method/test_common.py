"""Scoring beside sampling: the rest is drawn while the first rows are scored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from genalign.reward import FunctionReward, Hybrid, Runner, Sharpness, Sum
from genalign.types import GenalignError, Media, Prompt, Trajectory
from tests.helpers.diffusion import policy as diffusion_policy
from tests.helpers.scoring import same, sampled_and_scored
from tests.helpers.toy_policy import ToyPolicy
from tests.helpers.toy_rewards import says


class Rolling(ToyPolicy):
    """Hands its rollout out two rows at a time; `between` is called before each further part."""

    between: Any = staticmethod(lambda: None)

    def rolling(self, asked: Any, per_prompt: int, seed: int) -> Iterator[Any]:
        whole = self.rollout(asked, per_prompt, seed)
        for at in range(0, len(whole.prompts), 2):
            rows = list(range(at, min(at + 2, len(whole.prompts))))
            yield [whole.prompts[row] for row in rows], whole.media.select(rows), whole.group[rows]
            self.between()
        yield whole


def test_scoring_goes_on_while_the_rest_is_sampled() -> None:
    """The policy will not sample on before its first part has been scored: without overlap this would not end."""
    scored = threading.Event()

    def bright(image: Any) -> Any:
        scored.set()
        return image.mean((1, 2, 3))

    policy, overlapped = Rolling(), Runner(FunctionReward(bright), overlaps=True)
    waited: list[bool] = []
    policy.between = lambda: waited.append(scored.wait(30))
    asked = [Prompt(str(uid), uid=uid) for uid in range(3)]
    trajectory, scores = sampled_and_scored(policy, asked, overlapped, 2, 0, "test")
    assert waited == [True] * 3
    plain = Runner(FunctionReward(bright))(trajectory.prompts, trajectory.media, trajectory.group)
    same(scores, plain)
    assert overlapped.log()["rewards/bright/fail_rate"] == 0


@pytest.mark.parametrize("per_prompt", [1, 2, 3, 5])
def test_siblings_stay_together_however_the_rollout_is_cut(per_prompt: int) -> None:
    calls: list[list[int]] = []

    def spread(image: Any, group: list[int]) -> Any:
        calls.append(group)
        own = image.mean((1, 2, 3))
        return [float(own[i] - own[[g == group[i] for g in group]].mean()) for i in range(len(group))]

    asked = [Prompt(str(uid), uid=uid) for uid in (4, 2, 7)]
    _, scores = sampled_and_scored(
        Rolling(), asked, Runner(FunctionReward(spread), overlaps=True), per_prompt, 0, "test"
    )
    assert all(uid not in later for i, call in enumerate(calls) for uid in call for later in calls[i + 1 :])
    assert len(calls) > 1
    same(scores, sampled_and_scored(Rolling(), asked, Runner(FunctionReward(spread)), per_prompt, 0, "test")[1])


def test_a_prompt_drawn_twice_is_scored_as_one_group() -> None:
    calls: list[list[int]] = []

    def spy(image: Any, group: list[int]) -> list[float]:
        calls.append(group)
        return [1.0] * len(group)

    asked = [Prompt("a", uid=1), Prompt("b", uid=2), Prompt("a", uid=1)]
    sampled_and_scored(Rolling(), asked, Runner(FunctionReward(spy), overlaps=True), 2, 0, "test")
    assert calls == [[1, 1, 2, 2, 1, 1]]


def test_a_reward_that_fails_beside_sampling_stops_the_run_as_ever() -> None:
    def broken(image: Any) -> Any:
        raise RuntimeError("no memory")

    broken_beside = Runner(FunctionReward(broken), overlaps=True)
    with pytest.raises(GenalignError, match=r"'broken' failed on 6 of the last 6 samples.*no memory"):
        sampled_and_scored(Rolling(), [Prompt(str(uid), uid=uid) for uid in range(3)], broken_beside, 2, 0, "test")


def test_a_pipeline_rolls_out_the_same_in_parts() -> None:
    made = diffusion_policy()
    asked = [Prompt("a b", uid=1), Prompt("c d e", uid=2), Prompt("x", uid=5)]
    *parts, trajectory = made.rolling(asked, 3, 0)
    whole = made.rollout(asked, 3, 0)
    assert isinstance(trajectory, Trajectory)
    assert torch.equal(trajectory.logp, whole.logp)
    assert [len(part[0]) for part in parts] == [4, 4, 1]  # type: ignore[index, arg-type]
    given = Media.cat([part[1] for part in parts])  # type: ignore[index, misc]
    assert torch.equal(given["image"].data, whole.media["image"].data)  # type: ignore[arg-type]
    assert torch.cat([part[2] for part in parts]).tolist() == whole.group.tolist()  # type: ignore[index]
    overlapped = Runner(Hybrid(says(*[(0.5, 0.5)] * 9, name="rule"), Sharpness(), mode="stratified"), overlaps=True)
    asked = [replace(prompt, facts={"row": k}) for k, prompt in enumerate(asked)]
    _, beside = sampled_and_scored(made, asked, overlapped, 3, 0, "test")
    _, after = sampled_and_scored(made, asked, Sum([overlapped.reward]), 3, 0, "test")
    assert torch.equal(beside.total, after.total)
