"""The loop: how it steps, what it logs, how it resumes, and that a broken policy does not get past the first step."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genalign.data.prompts import Prompts, read_prompts
from genalign.method import MethodSettings, build_method
from genalign.training.checkpoint import load_checkpoint, newest_checkpoint
from genalign.training.loop import train
from genalign.training.progress import restore, start
from genalign.training.settings import TrainSettings
from genalign.types import GenalignError, Loss, Steps, Trajectory, Weights
from tests.helpers.averaged import Averaged
from tests.helpers.toy_policy import ToyPolicy, ToyReward

SETTINGS = TrainSettings(steps=5, learning_rate=0.05, checkpoint_every=2, keep_checkpoints=9, ema=0.5)
METHOD = MethodSettings(name="flow-grpo", group=4, updates_per_rollout=2, kl_beta=0.01)


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(7)))
    return read_prompts(path)


def run(
    policy: ToyPolicy, prompts: Prompts, folder: Path, settings: TrainSettings = SETTINGS
) -> list[dict[str, float]]:
    folder.mkdir(exist_ok=True)
    progress = start(policy, ToyReward(), settings)
    return list(train(progress, build_method(METHOD), lambda step: prompts.draw(step, 3, 0), folder))


# ---- the update -----------------------------------------------------------------------------------------------------


class TwoLosses:
    """Two micro-batches, one update: their sum must be stepped on once, clipped by its global norm."""

    name, needs = "two", frozenset({"rollout", "reward"})

    def __init__(self) -> None:
        self.inner = build_method(METHOD)
        self.collect = self.inner.collect

    def losses(self, policy: ToyPolicy, experience: object) -> Iterator[Loss]:
        yield Loss(3.0 * policy.delta.sum(), {"loss": (2.0, 1.0)})
        yield Loss(1.0 * policy.delta.sum(), {"loss": (4.0, 3.0)}, step=True)


def test_one_update_is_one_clipped_adamw_step(prompts: Prompts, tmp_path: Path) -> None:
    policy = Averaged()
    settings = TrainSettings(steps=1, learning_rate=0.05, max_grad_norm=0.5, weight_decay=0.1, ema=0.75)
    oracle = torch.nn.Parameter(policy.delta.detach().clone())
    log = next(
        train(start(policy, ToyReward(), settings), TwoLosses(), lambda step: prompts.draw(step, 3, 0), tmp_path)
    )
    gradient = torch.full_like(oracle, 4.0)
    norm = gradient.norm().item()
    oracle.grad = gradient * 0.5 / norm
    torch.optim.AdamW([oracle], lr=0.05, weight_decay=0.1).step()
    assert torch.allclose(policy.delta, oracle, atol=1e-7)
    assert torch.allclose(policy.average, 0.25 * oracle, atol=1e-7)
    assert log["loss"] == pytest.approx(6 / 4)
    assert log["grad_norm"] == pytest.approx(norm)


def test_a_gradient_that_is_not_finite_stops_the_run(prompts: Prompts, tmp_path: Path) -> None:
    class Broken(TwoLosses):
        def losses(self, policy: ToyPolicy, experience: object) -> Iterator[Loss]:
            yield Loss(policy.delta.sum() * float("nan"), step=True)

    policy = Averaged()
    with pytest.raises(GenalignError, match=r"gradient of step 3 is not finite \(nan\), and 3 updates before it"):
        list(train(start(policy, ToyReward(), SETTINGS), Broken(), lambda step: prompts.draw(step, 3, 0), tmp_path))
    assert torch.equal(policy.delta, torch.zeros_like(policy.delta))


# ---- the log --------------------------------------------------------------------------------------------------------


def test_metrics_hold_what_was_yielded(prompts: Prompts, tmp_path: Path) -> None:
    logs = run(Averaged(), prompts, tmp_path / "run")
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert written == logs
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5]
    wanted = {"reward", "reward_std", "frac_reward_zero_std", "kl", "clip_ratio/region_mean", "ratio/mean", "step_time"}
    assert wanted | {"perf/samples_per_s", "calls", "grad_norm", "loss"} <= set(logs[0])
    assert logs[0]["perf/samples_per_s"] * logs[0]["step_time"] == pytest.approx(3 * 4)


# ---- resuming -------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_uninterrupted_one(prompts: Prompts, tmp_path: Path) -> None:
    whole = Averaged()
    whole_logs = run(whole, prompts, tmp_path / "whole")

    killed, folder = Averaged(), tmp_path / "killed"
    folder.mkdir()
    progress = start(killed, ToyReward(), SETTINGS)
    steps = train(progress, build_method(METHOD), lambda step: prompts.draw(step, 3, 0), folder)
    for _ in range(3):  # one step past the checkpoint of step 2
        next(steps)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')

    found, _ = newest_checkpoint(folder)
    assert found == folder / "checkpoint-2"
    torch.rand(5)  # the global generator has moved on in the meantime
    resumed = Averaged()
    progress = start(resumed, ToyReward(), SETTINGS)
    restore(progress, load_checkpoint(found))
    logs = list(train(progress, build_method(METHOD), lambda step: prompts.draw(step, 3, 0), folder))

    assert torch.equal(resumed.delta, whole.delta)
    assert torch.equal(resumed.average, whole.average)
    assert not torch.equal(whole.delta, torch.zeros_like(whole.delta))
    timed = ("step_time", "time/", "perf/samples_per_s")
    untimed = [{k: v for k, v in log.items() if not k.startswith(timed)} for log in whole_logs[2:]]
    assert [{k: v for k, v in log.items() if not k.startswith(timed)} for log in logs] == untimed
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    for part in ("adapter", "ema", "optimizer"):
        ours = load_checkpoint(folder / "checkpoint-5").parts[part]
        theirs = load_checkpoint(tmp_path / "whole" / "checkpoint-5").parts[part]
        assert ours.keys() == theirs.keys() != set()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_must_not_change_under_a_resumed_run(prompts: Prompts, tmp_path: Path) -> None:
    progress = start(Averaged(), ToyReward(), SETTINGS, {"reward": "old", "data.prompts": "same"})
    list(train(progress, build_method(METHOD), lambda step: prompts.draw(step, 3, 0), tmp_path))
    other = start(Averaged(), ToyReward(), SETTINGS, {"reward": "new", "data.prompts": "same"})
    with pytest.raises(GenalignError, match="reward changed since"):
        restore(other, load_checkpoint(tmp_path / "checkpoint-4"))


# ---- the self-check -------------------------------------------------------------------------------------------------


class Forgetful(Averaged):
    """Replays with a log-prob that is off by a little."""

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        steps_ = super().replay(trajectory, rows, steps, versus)
        return replace(steps_, score=steps_.score + 1e-6 * steps_.score.abs())


class Blind(Averaged):
    """Its reference is not the model with adapters off."""

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        steps_ = super().replay(trajectory, rows, steps, versus)
        return steps_ if steps_.versus_score is None else replace(steps_, versus_score=steps_.versus_score + 1)


class Drifted(Averaged):
    """Starts with an adapter that already does something."""

    def __init__(self) -> None:
        super().__init__()
        self.delta.data += 0.1


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        (Forgetful, "log-ratio of the first replay"),
        (Blind, "reference against adapters off"),
        (Drifted, "KL to the ref"),
    ],
)
def test_a_policy_that_cannot_replay_is_stopped(
    policy: type[ToyPolicy], what: str, prompts: Prompts, tmp_path: Path
) -> None:
    broken = policy()
    before = broken.delta.detach().clone()
    with pytest.raises(GenalignError, match=f"self-check failed.*{what}"):
        run(broken, prompts, tmp_path / "run")
    assert torch.equal(broken.delta, before)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
