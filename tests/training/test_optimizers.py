"""Optimizers by name: what they do to a parameter, and their state as tensors; schedules against transformers'."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from genalign.training.optimizers import build_optimizer, load_optimizer_state, optimizer_state, set_rate, share_of_rate
from genalign.training.settings import TrainSettings
from genalign.types import UsageError

RATES = {"adamw": 0.05, "adamw-8bit": 0.05, "muon": 0.05, "prodigy": 1.0}
SIZE = 64 * 128  # as many values as torchao puts into 8 bits


def needed(name: str) -> None:
    if name == "adamw-8bit":
        pytest.importorskip("torchao", reason="torchao makes each import of diffusers slower, so tests run without")


def made(name: str, parameter: nn.Parameter, **settings: Any) -> torch.optim.Optimizer:
    needed(name)
    of = TrainSettings(optimizer=name, learning_rate=RATES[name], **settings)  # type: ignore[arg-type]
    return build_optimizer([{"params": [parameter]}], {"a.b": parameter}, of)


def start() -> nn.Parameter:
    return nn.Parameter(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)))


def descend(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        parameter.grad = torch.sin(parameter.detach() * 3 + step)
        optimizer.step()


@pytest.mark.parametrize("name", RATES)
def test_what_is_saved_and_put_back_goes_on_bit_for_bit(name: str) -> None:
    straight = start()
    descend(straight, made(name, straight), range(6))

    first = start()
    optimizer = made(name, first)
    descend(first, optimizer, range(3))
    saved = {key: tensor.clone() for key, tensor in optimizer_state(optimizer, {"a.b": first}).items()}
    assert all(type(tensor) is Tensor for tensor in saved.values())

    second = nn.Parameter(first.detach().clone())
    resumed = made(name, second)
    load_optimizer_state(resumed, {"a.b": second}, saved)
    descend(second, resumed, range(3, 6))
    assert torch.equal(second, straight)
    forgetful = nn.Parameter(first.detach().clone())
    descend(forgetful, made(name, forgetful), range(3, 6))
    assert not torch.equal(forgetful, straight)


@pytest.mark.parametrize("name", RATES)
def test_a_share_of_the_rate_is_a_step_as_much_smaller(name: str) -> None:
    moved = []
    for share in (1.0, 0.25):
        parameter = start()
        optimizer = made(name, parameter)
        before = parameter.detach().clone()
        set_rate(optimizer, [RATES[name]], share)
        descend(parameter, optimizer, range(1))
        moved.append((parameter.detach() - before).norm())
    assert float(moved[1] / moved[0]) == pytest.approx(0.25, rel=0.01)  # prodigy begins with steps near rounding


def test_a_weight_decays_apart_from_its_gradient() -> None:
    for name in ("adamw", "muon"):
        parameter = start()
        optimizer = made(name, parameter, weight_decay=0.1)
        before = parameter.detach().clone()
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), before * (1 - RATES[name] * 0.1))


def test_muon_moves_a_matrix_along_orthogonal_directions_as_far_as_adamw() -> None:
    parameter = start()
    optimizer, before = made("muon", parameter), parameter.detach().clone()
    descend(parameter, optimizer, range(1))
    moved = (before - parameter.detach()) / RATES["muon"]
    values = torch.linalg.svdvals(moved) / (0.2 * 128**0.5)
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3  # Newton-Schulz in five steps is no exact inverse root
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.2, rel=0.15)


def test_prodigy_finds_a_rate_where_none_is_tuned() -> None:
    wanted = 3 + torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    parameter = nn.Parameter(torch.zeros(64, 128))
    optimizer = made("prodigy", parameter)
    for _ in range(120):
        parameter.grad = parameter.detach() - wanted
        optimizer.step()
    parameter.requires_grad_(False)
    assert float((parameter - wanted).square().mean()) < 0.01 * float(wanted.square().mean())


def test_eight_bits_keep_a_quarter_of_the_bytes_and_nearly_the_same_way() -> None:
    ways, bytes_kept = {}, {}
    for name in ("adamw", "adamw-8bit"):
        parameter = start()
        optimizer = made(name, parameter)
        descend(parameter, optimizer, range(5))
        ways[name] = parameter.detach() - start().detach()
        state = optimizer_state(optimizer, {"a.b": parameter}).values()
        bytes_kept[name] = sum(tensor.numel() * tensor.element_size() for tensor in state)
    assert bytes_kept["adamw"] == 2 * 4 * SIZE + 4
    assert bytes_kept["adamw-8bit"] < 0.3 * bytes_kept["adamw"]
    assert float(torch.cosine_similarity(*(way.flatten() for way in ways.values()), dim=0)) > 0.98


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_follows_transformers_schedules(schedule: str, warmup: int) -> None:
    settings = TrainSettings(steps=12, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = transformers.get_scheduler(name, optimizer, warmup, None if schedule == "constant" else 13)
    for step in range(12):
        optimizer.step()
        theirs.step()
        assert share_of_rate(settings, step) == pytest.approx(theirs.get_last_lr()[0])
    assert share_of_rate(settings, 11) > 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(UsageError, match=r"pip install 'genalign\[optimizers\]'"):
        made("prodigy", start())


def test_what_an_optimizer_cannot_move_is_refused() -> None:
    kernel = nn.Parameter(torch.zeros(3, 3, 1, 1))
    with pytest.raises(UsageError, match=r"a\.b has shape \(3, 3, 1, 1\); take adamw"):
        made("muon", kernel)
    with pytest.raises(ValueError, match=r"set train\.learning_rate=1"):
        TrainSettings(optimizer="prodigy", learning_rate=3e-4)
    with pytest.raises(ValueError, match=r"set train\.warmup=1"):
        TrainSettings(steps=10, warmup=11)
