"""Faults in the middle of an update, in four modalities by four methods: the run goes on, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.method import MethodSettings, build_method, updates
from genalign.reward import FunctionReward, Runner
from genalign.training.checkpoint import load_checkpoint
from genalign.training.loop import train
from genalign.training.progress import start
from genalign.training.settings import TrainSettings
from genalign.types import Experience, GenalignError, Loss, Method, Policy, Prompt
from tests.helpers import diffusion, language_policies, sound_policies, video_policies

STEPS = 3


@dataclass(frozen=True)
class Job:
    """policy: built once. start: the weights that every test begins with."""

    policy: Any
    prompts: list[Prompt]
    score: Callable[..., Any]
    method: dict[str, Any]
    start: dict[str, Tensor]


def _mean(data: Any) -> list[float]:
    return [float(torch.as_tensor(row).float().mean()) for row in data]


MAKERS: dict[str, Callable[[], tuple[Policy, list[Prompt], Any, dict[str, Any]]]] = {
    "image": lambda: (
        diffusion.policy("stable-diffusion-3"), diffusion.PROMPTS[:2], lambda image: _mean(image),
        {"name": "flow-grpo", "group": 4},
    ),
    "video": lambda: (
        video_policies.made("wan"), video_policies.prompts("wan"), lambda video: _mean(video),
        {"name": "nft", "group": 4},
    ),
    "music": lambda: (
        sound_policies.made("stable-audio-3", batch_size=4), sound_policies.prompts("stable-audio-3"),
        lambda audio: _mean(audio), {"name": "d3po", "group": 4},
    ),
    "text": lambda: (
        language_policies.policy("qwen3", batch_size=4), language_policies.TEXTS,
        lambda text: [float(len(set(one))) for one in text], {"name": "grpo", "group": 4, "updates_per_rollout": 2},
    ),
}  # fmt: skip


@cache
def _job(kind: str) -> Job:
    policy, prompts, score, method = MAKERS[kind]()
    return Job(policy, prompts, score, method, {n: p.detach().clone() for n, p in policy.named_trainable().items()})


@pytest.fixture(params=MAKERS)
def job(request: pytest.FixtureRequest) -> Job:
    return _job(request.param)


class Faulty:
    """A method into whose losses a fault is put: `fault(number of the micro-batch, loss)` gives what is learnt from."""

    def __init__(self, method: Method, fault: Callable[[int, Tensor], Tensor]) -> None:
        self.name, self.needs, self.collect = method.name, method.needs, method.collect
        self.method, self.fault, self.number = method, fault, -1

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        each = iter(self.method.losses(policy, experience))
        while True:
            try:
                loss = next(each)
            except StopIteration:
                return
            self.number += 1
            yield replace(loss, total=self.fault(self.number, loss.total))


def run(
    job: Job, folder: Path, method: Method | None = None, score: Any = None, **settings: Any
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The weights that a run of three steps ends with, and its log."""
    folder.mkdir(exist_ok=True)
    updates._ENOUGH.pop(job.policy, None)
    with torch.no_grad():
        for name, parameter in job.policy.named_trainable().items():
            parameter.copy_(job.start[name])
            parameter.grad = None
    reward = Runner(FunctionReward(score or job.score), max_failure=1.0)
    given = TrainSettings(steps=STEPS, learning_rate=1e-3, checkpoint_every=9, **settings)
    method = method or build_method(MethodSettings(**job.method))
    log = list(train(start(job.policy, reward, given), method, lambda step: job.prompts, folder))
    return {n: p.detach().clone() for n, p in job.policy.named_trainable().items()}, log


# ---- memory ---------------------------------------------------------------------------------------------------------


class Narrow:
    """From now on a policy has memory for the update of `rows` rows (or pairs) at most; `backward`: that shows in the
    backward pass, after a part of the gradient was added. refused: how often it had not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, policy: Policy, rows: int, backward: bool) -> None:
        self.refused = 0
        parameters = list(policy.named_trainable().values())
        real = updates.replace

        def replacing(loss: Any, **changes: Any) -> Any:
            if not (isinstance(loss, Loss) and "anew" in changes):
                return real(loss, **changes)
            if self.size <= rows:
                return real(loss, **changes)
            self.refused += 1
            if not backward:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(loss, **changes, total=_Breaks.apply(loss.total, parameters))

        of_size = updates._of_size

        def sized(units: Any, most: int | None) -> Any:
            cut = of_size(units, most)
            self.size = max((len(updates._rows(unit)) for unit in cut), default=0)
            return cut

        monkeypatch.setattr(updates, "replace", replacing)
        monkeypatch.setattr(updates, "_of_size", sized)


class _Breaks(torch.autograd.Function):
    """The same number, whose gradient has been added in part when memory ends."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
        ctx.parameters = parameters
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        for parameter in ctx.parameters[::2]:
            parameter.grad = torch.ones_like(parameter)
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_micro_batch_for_which_memory_is_short_is_halved(
    job: Job, backward: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if job.method["name"] == "grpo":
        job = replace(job, method={**job.method, "updates_per_rollout": 1})
    whole, undisturbed = run(job, tmp_path / "whole")
    rows = 1 if job.method["name"] in ("d3po", "nft") else 2  # pairs of four rows; micro-batches of two; of four
    narrow = Narrow(monkeypatch, job.policy, rows, backward)
    found, log = run(job, tmp_path / "narrow")
    assert narrow.refused == 1  # later updates have the smaller size from the start
    assert "memory is not enough for updates of" in caplog.text
    for name in whole:
        torch.testing.assert_close(found[name], whole[name], atol=1e-5, rtol=0)
    for a, b in zip(log, undisturbed, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_memory_that_is_short_for_one_row_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _job("text")
    Narrow(monkeypatch, job.policy, 0, backward=False)
    with pytest.raises(GenalignError, match=r"memory is not enough for the update of a single row"):
        run(job, tmp_path)


# ---- numbers that are none ------------------------------------------------------------------------------------------


class InSecondStep(Faulty):
    """The same, in the second step alone."""

    step = 0

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        self.step += 1
        yield from super().losses(policy, experience) if self.step == 2 else self.method.losses(policy, experience)


def nan(number: int, total: Tensor) -> Tensor:
    return total * float("nan")


def steep(number: int, total: Tensor) -> Tensor:
    return total + (total - total.detach()).abs().sqrt()  # the same number, with a slope of 0 * infinity


@pytest.mark.parametrize(("kind", "fault"), [*((kind, nan) for kind in MAKERS), ("image", steep)])
def test_an_update_that_is_not_finite_is_left_out_and_counted(
    kind: str, fault: Callable[[int, Tensor], Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = _job(kind)
    found, log = run(job, tmp_path, InSecondStep(build_method(MethodSettings(**job.method)), fault))
    updates = job.method.get("updates_per_rollout", 1)
    assert [row.get("skipped_updates", 0.0) for row in log] == [0.0, updates, 0.0]
    assert not {"loss", "grad_norm"} & set(log[1])
    assert f"step 1 is not finite (nan): its update is left out ({updates} of 3 in a row)" in caplog.text
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    state = load_checkpoint(tmp_path / f"checkpoint-{STEPS}").parts["optimizer"]
    assert {int(value) for name, value in state.items() if name.endswith("/step")} == {2 * updates}


def test_too_many_such_updates_in_a_row_end_the_run(tmp_path: Path) -> None:
    job = _job("image")
    method = Faulty(build_method(MethodSettings(**job.method)), nan)
    with pytest.raises(GenalignError, match=r"step 1 is not finite \(nan\), and 1 updates before it were left out"):
        run(job, tmp_path, method, skip_not_finite=1)
    for name, parameter in job.policy.named_trainable().items():
        assert torch.equal(parameter, job.start[name])


# ---- rewards --------------------------------------------------------------------------------------------------------


class Now:
    """A reward of one modality that goes wrong the first time it is asked, in one of three ways."""

    def __init__(self, job: Job, fault: str) -> None:
        self.job, self.fault, self.calls = job, fault, 0

    def __call__(self, data: Any) -> Any:
        self.calls += 1
        scores = self.job.score(data)
        if self.fault == "raises" and self.calls <= 3:  # all rows at once, and the first two once more, each alone
            raise RuntimeError("out of order")
        if self.calls > 1:
            return scores
        return scores[1:] if self.fault == "wrong length" else [float("nan"), *scores[1:]]


@pytest.mark.parametrize(
    ("kind", "fault"), [("image", "wrong length"), ("video", "raises"), ("music", "not a number"), ("text", "raises")]
)
def test_a_reward_that_fails_once_masks_its_rows_and_the_run_goes_on(kind: str, fault: str, tmp_path: Path) -> None:
    job = _job(kind)
    now = Now(job, fault)
    scored = {
        "image": lambda image: now(image), "video": lambda video: now(video),
        "music": lambda audio: now(audio), "text": lambda text: now(text),
    }[kind]  # fmt: skip
    found, log = run(job, tmp_path, score=scored)
    assert any(key.endswith("fail_rate") and value > 0 for key, value in log[0].items()), log[0]
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    assert any(not torch.equal(found[name], job.start[name]) for name in found)
