"""The back end of an update: against torch's AdamW and clipping, over ranks, and as what the loop moves weights by."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from genalign.method import MethodSettings, build_method
from genalign.training import backend as backends
from genalign.training import selfcheck
from genalign.training.backend import Backend, Parts, Replicated
from genalign.training.checkpoint import load_checkpoint
from genalign.training.loop import train
from genalign.training.progress import Progress, restore
from genalign.training.settings import TrainSettings
from genalign.types import GenalignError, Loss, Policy, Prompt
from tests.helpers.toy_policy import ToyPolicy, ToyReward

SETTINGS = TrainSettings(steps=2, learning_rate=0.05, weight_decay=0.1, betas=(0.8, 0.95), checkpoint_every=1, ema=0.5)
PROMPTS = [Prompt(f"prompt {i}", uid=i) for i in range(3)]


class TwoParts(ToyPolicy):
    """A toy with a second parameter, which has no dimension, and which no loss need reach."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def parameter_groups(self) -> list[dict[str, object]]:
        return [{"params": [self.delta, self.scale]}]

    def named_trainable(self) -> dict[str, torch.nn.Parameter]:
        return {"delta": self.delta, "scale": self.scale}


def prepared(settings: TrainSettings = SETTINGS) -> tuple[TwoParts, Replicated]:
    policy, backend = TwoParts(), Replicated()
    backend.prepare(policy, settings)
    return policy, backend


def gradients(backend: Backend, policy: TwoParts) -> None:
    """Of two micro-batches and a loss without a graph, which adds nothing."""
    backend.backward((3.0 * policy.delta).sum() + policy.scale.square(), last=False)
    backend.backward(torch.tensor(7.0), last=False)
    backend.backward(policy.delta.square().sum(), last=True)


# ---- one process ----------------------------------------------------------------------------------------------------


def test_an_update_is_torchs_adamw_on_the_summed_and_clipped_gradient() -> None:
    policy, backend = prepared()
    oracle = [torch.nn.Parameter(p.detach().clone()) for p in (policy.delta, policy.scale)]
    theirs = torch.optim.AdamW(oracle, lr=0.05, weight_decay=0.1, betas=(0.8, 0.95))
    for _ in range(3):
        gradients(backend, policy)
        delta, scale = oracle
        delta.grad, scale.grad = 3.0 + 2 * delta.detach(), 2 * scale.detach()
        norm = torch.cat([delta.grad.flatten(), scale.grad.flatten()]).norm().item()
        for parameter in oracle:
            parameter.grad *= min(1.0, 0.5 / norm)  # type: ignore[operator]
        assert backend.reduce_and_clip(0.5) == pytest.approx(norm, rel=1e-6)
        backend.step()
        theirs.step()
        assert policy.delta.grad is None
        torch.testing.assert_close(policy.delta, delta)
        torch.testing.assert_close(policy.scale, scale)


def test_what_is_saved_and_put_back_goes_on_bit_for_bit(tmp_path: Path) -> None:
    policy, backend = prepared()
    gradients(backend, policy)
    backend.reduce_and_clip(1.0)
    backend.step()
    saved = {part: {name: t.clone() for name, t in of.items()} for part, of in backend.state(averaged=False).items()}
    assert set(saved) == {"adapter", "optimizer"}
    assert set(saved["optimizer"]) == {
        f"{n}/{e}" for n in ("delta", "scale") for e in ("step", "exp_avg", "exp_avg_sq")
    }
    resumed, other = prepared()
    other.load_state(saved, tmp_path)
    for p, b in ((policy, backend), (resumed, other)):
        gradients(b, p)
        b.reduce_and_clip(1.0)
        b.step()
    assert torch.equal(policy.delta, resumed.delta)
    assert torch.equal(policy.scale, resumed.scale)
    with pytest.raises(GenalignError, match="has other layers than this policy"):
        other.load_state({**saved, "adapter": {"delta": saved["adapter"]["delta"]}}, tmp_path)


# ---- several --------------------------------------------------------------------------------------------------------


def test_gradients_are_summed_over_ranks_also_where_this_rank_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 reached both parameters, this one reached delta alone: one message, and the global norm of the sum."""
    policy, backend = prepared()
    sent: list[Tensor] = []
    theirs = torch.arange(policy.delta.numel() + 1, dtype=torch.float32)
    monkeypatch.setattr(backends, "world", lambda: 2)
    monkeypatch.setattr(backends, "all_sum", lambda flat: sent.append(flat) or flat + theirs)
    backend.backward((3.0 * policy.delta).sum(), last=True)
    norm = backend.reduce_and_clip(1e9)
    assert len(sent) == 1
    assert sent[0].tolist() == [3.0] * policy.delta.numel() + [0.0]
    torch.testing.assert_close(policy.delta.grad.flatten(), 3.0 + theirs[:-1])  # type: ignore[union-attr]
    torch.testing.assert_close(policy.scale.grad, theirs[-1])
    assert norm == pytest.approx(torch.cat([3.0 + theirs[:-1], theirs[-1:]]).norm().item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_equal_bits_are_seen_in_every_shape_and_dtype(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = torch.ones(shape, dtype=dtype)
    sums: list[Tensor] = []
    monkeypatch.setattr(selfcheck, "world", lambda: 2)
    monkeypatch.setattr(selfcheck, "gather", lambda mine: sums.append(mine) or torch.cat(sums))
    selfcheck.check_equal([ours], "adapters")  # what the other rank sends
    selfcheck.check_equal([ours.clone()], "adapters")
    if ours.numel():
        other = ours.clone()
        other.view(-1)[-1:] = 0
        with pytest.raises(GenalignError, match="adapters differ between ranks"):
            selfcheck.check_equal([other], "adapters")


# ---- the loop -------------------------------------------------------------------------------------------------------


class Recording(Replicated):
    """What the loop calls, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.shares: list[float] = []

    def prepare(self, policy: Policy, settings: TrainSettings) -> None:
        self.calls.append("prepare")
        super().prepare(policy, settings)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.calls.append("backward, last" if last else "backward")
        super().backward(loss, last)

    def reduce_and_clip(self, max_norm: float) -> float:
        self.calls.append("reduce_and_clip")
        return super().reduce_and_clip(max_norm)

    def step(self, share: float = 1.0) -> None:
        self.calls.append("step")
        self.shares.append(share)
        super().step(share)

    def check(self, what: Literal["adapters", "gradients"]) -> None:
        self.calls.append(f"check {what}")
        super().check(what)

    def state(self, averaged: bool) -> dict[str, dict[str, Tensor]]:
        self.calls.append("state")
        return super().state(averaged)

    def load_state(self, parts: Parts, folder: Path) -> None:
        self.calls.append("load_state")
        super().load_state(parts, folder)


class TwoLosses:
    """Two micro-batches an update."""

    name, needs = "two", frozenset({"rollout", "reward"})

    def __init__(self) -> None:
        self.collect = build_method(MethodSettings(name="flow-grpo", group=4)).collect

    def losses(self, policy: ToyPolicy, experience: object) -> Iterator[Loss]:
        yield Loss(3.0 * policy.delta.sum())
        yield Loss(1.0 * policy.delta.sum(), step=True)


UPDATE = ["backward", "backward, last", "reduce_and_clip"]


def test_the_loop_reaches_the_weights_through_its_back_end_alone(tmp_path: Path) -> None:
    policy, backend = ToyPolicy(), Recording()
    backend.prepare(policy, SETTINGS)
    progress = Progress(policy, ToyReward(), backend, SETTINGS)
    list(train(progress, TwoLosses(), lambda step: PROMPTS, tmp_path))
    first = ["check adapters", *UPDATE, "check gradients", "step", "state"]
    assert backend.calls == ["prepare", *first, *UPDATE, "step", "state"]
    again = Recording()
    again.prepare(resumed := ToyPolicy(), SETTINGS)
    restore(Progress(resumed, ToyReward(), again, SETTINGS), load_checkpoint(tmp_path / "checkpoint-2"))
    assert again.calls == ["prepare", "load_state"]
    assert torch.equal(resumed.delta, policy.delta)


def test_the_rate_of_a_step_is_its_schedules(tmp_path: Path) -> None:
    settings = TrainSettings(steps=3, schedule="linear", checkpoint_every=3)
    policy, backend = ToyPolicy(), Recording()
    backend.prepare(policy, settings)
    list(train(Progress(policy, ToyReward(), backend, settings), TwoLosses(), lambda step: PROMPTS, tmp_path))
    assert backend.shares == pytest.approx([0.75, 0.5, 0.25])
    assert backend.optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * settings.learning_rate)


class Frozen(Recording):
    """A back end whose steps move nothing."""

    def step(self, share: float = 1.0) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def test_a_back_end_that_does_not_step_leaves_the_policy_alone(tmp_path: Path) -> None:
    policy, backend = ToyPolicy(), Frozen()
    backend.prepare(policy, SETTINGS)
    before = policy.delta.detach().clone()
    list(train(Progress(policy, ToyReward(), backend, SETTINGS), TwoLosses(), lambda step: PROMPTS, tmp_path))
    assert torch.equal(policy.delta, before)


def test_adapters_that_take_no_part_are_named(caplog) -> None:
    """torch's attention reads out_proj's weight and never calls it, so peft's adapter on it is dead."""
    from peft import LoraConfig, inject_adapter_in_model

    from genalign.training.backend import warn_of_dead_adapters

    net = torch.nn.Module()
    net.attention, net.linear = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.nn.Linear(8, 8)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["out_proj", "linear"]), net)
    x = torch.randn(2, 3, 8)
    net.linear(net.attention(x, x, x)[0]).square().sum().backward()
    named = {name: parameter for name, parameter in net.named_parameters() if "lora_" in name}
    warn_of_dead_adapters(named)
    assert "1 of 2 adapted layers got no gradient" in caplog.text
    assert "attention.out_proj" in caplog.text
    caplog.clear()
    warn_of_dead_adapters({name: parameter for name, parameter in named.items() if "linear" in name})
    for parameter in named.values():
        parameter.grad = None
    warn_of_dead_adapters(named)  # nothing moves: that is said elsewhere
    assert caplog.text == ""
