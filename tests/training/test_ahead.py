"""Sampling a step ahead: when it begins, by which weights it draws, and that a resumed run draws the same."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.data.prompts import Prompts, read_prompts
from genalign.method import MethodSettings, build_method
from genalign.reward import FunctionReward, Runner
from genalign.training.checkpoint import load_checkpoint, newest_checkpoint
from genalign.training.loop import train, update
from genalign.training.progress import Progress, restore, save_unsaved, start
from genalign.training.settings import TrainSettings
from genalign.types import Media, Prompt, Scores, Trajectory, UsageError
from tests.helpers.averaged import Averaged
from tests.helpers.diffusion import policy as diffusion_policy
from tests.helpers.toy_policy import ToyReward

STEPS = 5
SETTINGS = TrainSettings(steps=STEPS, staleness=1, learning_rate=0.05, checkpoint_every=2, keep_checkpoints=9, ema=0.5)
METHODS: dict[str, dict[str, Any]] = {
    "flow-grpo": {"updates_per_rollout": 2, "kl_beta": 0.01},
    "ppo": {},
    "dpok": {},
    "d3po": {},
    "kto": {},
    "nft": {},
    "flow-rwr": {},
    "flow-dpo": {},
    "dragon": {},
}


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(7)))
    return read_prompts(path)


class Bright(ToyReward):
    aspects = ("a",)  # as its scores have it


def beside(reward: Any = None) -> Runner:
    return Runner(reward or Bright(), overlaps=True)


def built(name: str) -> Any:
    return build_method(MethodSettings(name=name, group=4, **METHODS[name]))


def untimed(logs: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    timed = ("step_time", "time/", "perf/samples_per_s")
    return [{key: value for key, value in log.items() if not key.startswith(timed)} for log in logs]


# ---- when -----------------------------------------------------------------------------------------------------------


class Noted(Averaged):
    """Notes each rollout as it begins."""

    def __init__(self, events: list[str], begun: list[threading.Event]) -> None:
        super().__init__()
        self.events, self.begun, self.drawn = events, begun, 0

    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        self.events.append(f"sample {self.drawn}")
        self.begun[self.drawn].set()
        self.drawn += 1
        return super().rollout(prompts, per_prompt, seed)


def test_a_step_is_sampled_before_the_scores_of_the_one_before_come(prompts: Prompts, tmp_path: Path) -> None:
    """Scores of a step do not come before the next one's sampling begins: without sampling ahead all would be late."""
    events, begun = list[str](), [threading.Event() for _ in range(STEPS)]
    in_time, scored = list[bool](), 0

    def slow(image: Any) -> Any:
        nonlocal scored
        in_time.append(begun[min(scored + 1, STEPS - 1)].wait(30))
        events.append(f"score {scored}")
        scored += 1
        return image.mean((1, 2, 3))

    policy, reward = Noted(events, begun), beside(FunctionReward(slow))
    progress = start(policy, reward, SETTINGS)
    logs = list(train(progress, built("flow-grpo"), lambda step: prompts.draw(step, 3, 0), tmp_path))
    assert in_time == [True] * STEPS
    order = {event: at for at, event in enumerate(events)}
    for step in range(STEPS - 1):  # one step ahead, and no more
        assert order[f"sample {step + 1}"] < order[f"score {step}"]
        assert step + 2 >= STEPS or order[f"score {step}"] < order[f"sample {step + 2}"]
    assert [log["staleness"] for log in logs] == [0, 1, 1, 1, 1]


# ---- by which weights -----------------------------------------------------------------------------------------------


def loaded(policy: Averaged, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Put delta and average into the policy; those that it had."""
    had = policy.delta.detach().clone(), policy.average.clone()
    policy.delta.data, policy.average = weights[0].clone(), weights[1].clone()
    return had


def one_step_late(method: Any, prompts: Prompts) -> Averaged:
    """The same training, step by step: samples by the weights of before the last update, learnt from by the present."""
    policy, reward = Averaged(), Bright()
    progress = start(policy, reward, SETTINGS)
    earlier = policy.delta.detach().clone(), policy.average.clone()
    for step in range(STEPS):
        present = loaded(policy, earlier)
        experience = method.collect(policy, prompts.draw(step, 3, 0), reward, SETTINGS.seed, step)
        loaded(policy, present)
        update(progress, method, experience)
        progress.step, earlier = progress.step + 1, present
    return policy


@pytest.mark.parametrize("name", METHODS)
def test_samples_are_of_the_weights_before_the_last_update(name: str, prompts: Prompts, tmp_path: Path) -> None:
    policy = Averaged()
    list(train(start(policy, beside(), SETTINGS), built(name), lambda step: prompts.draw(step, 3, 0), tmp_path))
    oracle = one_step_late(built(name), prompts)
    assert torch.equal(policy.delta, oracle.delta)
    assert torch.equal(policy.average, oracle.average)
    assert policy.delta.any()


def test_a_ratio_is_taken_to_the_weights_that_drew(prompts: Prompts, tmp_path: Path) -> None:
    """1 in the first step, whose samples the present weights drew, and no longer in the second."""
    settings = SETTINGS.model_copy(update={"steps": 3})
    method = build_method(MethodSettings(name="grpo", group=4))
    logs = list(train(start(Averaged(), beside(), settings), method, lambda s: prompts.draw(s, 3, 0), tmp_path))
    assert logs[0]["ratio/mean"] == 1
    assert all(log["ratio/mean"] != 1 for log in logs[1:])


class Learning(Bright):
    """A reward with a state; notes which update it was in when a rollout was scored."""

    def __init__(self) -> None:
        super().__init__()
        self.updates, self.seen = 0, list[int]()

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        self.seen.append(self.updates)
        return super().__call__(prompts, media, group)

    def update(self, scores: Scores, step: int) -> None:
        self.updates = step + 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.updates = int(state["updates"])


def test_a_reward_has_learnt_from_a_step_before_it_scores_the_next(prompts: Prompts, tmp_path: Path) -> None:
    reward = Learning()
    progress = start(Averaged(), beside(reward), SETTINGS)
    list(train(progress, built("flow-grpo"), lambda step: prompts.draw(step, 3, 0), tmp_path))
    assert reward.seen == list(range(STEPS))


def test_a_look_between_steps_does_not_meet_the_reward_at_work(prompts: Prompts, tmp_path: Path) -> None:
    """What looks at other samples by the same reward, as a monitor does, waits until it is free."""
    inside, met = list[int](), list[bool]()

    def alone(image: Any) -> Any:
        met.append(bool(inside))
        inside.append(len(image))
        time.sleep(0.05)
        inside.clear()
        return image.mean((1, 2, 3))

    policy, reward = Averaged(), beside(FunctionReward(alone))
    other, asked = reward.apart(), prompts.draw(0, 2, 0)
    for _ in steps_of(start(policy, reward, SETTINGS), built("flow-grpo"), prompts, tmp_path / "run"):
        drawn = policy.rollout(asked, 2, 0)
        other(drawn.prompts, drawn.media, drawn.group)
    assert len(met) == 2 * STEPS
    assert not any(met)


def test_a_pipeline_replays_a_rollout_after_the_next_one_was_drawn(prompts: Prompts, tmp_path: Path) -> None:
    """Of a real sampler: the first step equals that of a run which samples nothing ahead."""
    settings = TrainSettings(steps=2, staleness=1, learning_rate=0.01)
    method = MethodSettings(name="grpo", group=2)
    deltas = []
    for staleness in (0, 1):
        policy = diffusion_policy()
        progress = start(policy, beside(), settings.model_copy(update={"staleness": staleness}))
        steps = train(progress, build_method(method), lambda step: prompts.draw(step, 2, 0), tmp_path / str(staleness))
        (tmp_path / str(staleness)).mkdir()
        next(steps)
        deltas.append([p.detach().clone() for p in policy.named_trainable().values()])
        next(steps)
    assert all(torch.equal(a, b) for a, b in zip(*deltas, strict=True))
    assert any(p.any() for p in deltas[0])


# ---- resuming -------------------------------------------------------------------------------------------------------


def steps_of(progress: Progress, method: Any, prompts: Prompts, folder: Path) -> Iterator[dict[str, float]]:
    folder.mkdir(exist_ok=True)
    return train(progress, method, lambda step: prompts.draw(step, 3, 0), folder)


@pytest.mark.parametrize("name", ["flow-grpo", "nft", "dpok"])
@pytest.mark.parametrize("ending", ["killed", "SIGTERM"])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, ending: str, prompts: Prompts, tmp_path: Path) -> None:
    """Killed one step past the checkpoint of step 2; or ended by SIGTERM, which writes one of step 3."""
    whole, folder = Averaged(), tmp_path / "ended"
    whole_logs = list(steps_of(start(whole, beside(Learning()), SETTINGS), built(name), prompts, tmp_path / "whole"))

    progress = start(Averaged(), beside(Learning()), SETTINGS)
    steps = steps_of(progress, built(name), prompts, folder)
    for _ in range(3):
        next(steps)
    if ending == "SIGTERM":
        save_unsaved(progress, folder)
    del steps

    found, _ = newest_checkpoint(folder)
    assert found == folder / ("checkpoint-3" if ending == "SIGTERM" else "checkpoint-2")
    torch.rand(5)  # the global generator has moved on in the meantime
    resumed, reward = Averaged(), Learning()
    progress = start(resumed, beside(reward), SETTINGS)
    restore(progress, load_checkpoint(found))
    first = progress.step
    logs = list(steps_of(progress, built(name), prompts, folder))
    assert torch.equal(resumed.delta, whole.delta)
    assert torch.equal(resumed.average, whole.average)
    assert resumed.delta.any()
    assert untimed(logs) == untimed(whole_logs[first:])
    assert reward.seen == list(range(first, STEPS))
    written = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert written == [1, 2, 3, 4, 5]
    for part in ("adapter", "ema", "optimizer", "earlier", "reward"):
        ours = load_checkpoint(folder / "checkpoint-5").parts[part]
        theirs = load_checkpoint(tmp_path / "whole" / "checkpoint-5").parts[part]
        assert ours.keys() == theirs.keys() != set()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_longer_run_goes_on_as_if_it_had_been_so_from_the_start(prompts: Prompts, tmp_path: Path) -> None:
    """The last step samples nothing ahead, and its checkpoint knows all the same what would have drawn."""
    whole = Averaged()
    list(steps_of(start(whole, beside(), SETTINGS), built("flow-grpo"), prompts, tmp_path / "whole"))
    folder, short = tmp_path / "short", SETTINGS.model_copy(update={"steps": 3})
    list(steps_of(start(Averaged(), beside(), short), built("flow-grpo"), prompts, folder))
    longer = Averaged()
    progress = start(longer, beside(), SETTINGS)
    restore(progress, load_checkpoint(folder / "checkpoint-3"))
    list(steps_of(progress, built("flow-grpo"), prompts, folder))
    assert torch.equal(longer.delta, whole.delta)


def test_a_run_that_ends_early_leaves_no_thread_scoring(prompts: Prompts, tmp_path: Path) -> None:
    steps = steps_of(start(Averaged(), beside(), SETTINGS), built("flow-grpo"), prompts, tmp_path / "run")
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("genalign-reward"):
            thread.join(30)
            assert not thread.is_alive()


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_a_method_that_knows_only_present_samples_is_refused(prompts: Prompts, tmp_path: Path) -> None:
    method = build_method(MethodSettings(name="awm", group=4))
    with pytest.raises(UsageError, match=r"method awm .*set train\.staleness=0"):
        next(steps_of(start(Averaged(), beside(), SETTINGS), method, prompts, tmp_path / "run"))
