"""Levers of memory, and pairs of them, under each way of learning: the same method without them is the oracle.

What a method logs and the gradients of its losses must be equal bit for bit, of rollouts that are replayed (Flow-GRPO,
D3PO), of the forward process (NFT) and of a reward's gradient (DRaFT). What is away is poisoned. A quantised base is
another base, so that levers beside it are held against it alone (which tests/policy/test_quantize.py holds against the
exact one).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.quantize import quantize_layers
from genalign.policy.settings import Cache, Lora, PolicySettings, Sampler
from tests.helpers.absence import poison
from tests.helpers.diffusion import PROMPTS
from tests.helpers.learners import method
from tests.helpers.tiny_pipelines import FAMILIES, MORE
from tests.helpers.toy_sampler import PixelReward

KNOWN = {**FAMILIES, **MORE}
CHOSEN = ("stable-diffusion-xl", "stable-diffusion-3", "z-image")  # a UNet, two streams, and one
METHODS: dict[str, dict[str, Any]] = {
    "flow-grpo": {"group": 2},
    "d3po": {"group": 2},
    "nft": {"group": 2, "draws": 1},
    "draft": {"grad_steps": 1, "micro_batch": 2},
}
LEVERS: dict[str, dict[str, Any]] = {
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "phases": {"offload": "phases"},
    "blocks": {"offload": "blocks"},
    "cache": {"cache": True},
    "int8": {"quantization": "torchao-int8"},
    "nf4": {"quantization": "bitsandbytes-nf4"},
}
QUANTIZED = ("int8", "nf4")
NEEDS = {"int8": "torchao", "nf4": "bitsandbytes"}
PAIRS = [
    (a, b)
    for a, b in combinations(LEVERS, 2)
    if not LEVERS[a].keys() & LEVERS[b].keys()  # two values of one key
]
QUICK = [("gradient_checkpointing", "phases"), ("gradient_checkpointing", "blocks"), ("blocks", "cache")]


def red(pixels: Tensor) -> Tensor:
    return 10 * (pixels[:, 0] - pixels[:, 2]).flatten(1).mean(1)


def policy(name: str, levers: Mapping[str, Any], folder: Any) -> DiffusionPolicy:
    """One whose adapter does something."""
    family = KNOWN[name]
    pipeline = family.build()
    levers = dict(levers)
    quantization = levers.pop("quantization", None)
    if quantization is not None:
        for part in ("unet", "transformer"):
            if part in pipeline.components:
                quantize_layers(pipeline.components[part], quantization, torch.device("cpu"))
    if levers.get("cache"):
        levers["cache"] = Cache(folder=str(folder))
    settings = PolicySettings(
        model=name,
        call=family.call,
        lora=Lora(rank=2, alpha=4),
        sampler=Sampler(steps=3, kernel="flow-sde" if family.flow else "cps", guidance=1.0),
        batch_size=2,
        **levers,
    )
    of = DiffusionPolicy(pipeline, settings)
    with torch.no_grad():
        for layer, parameter in of.named_trainable().items():
            if "lora_B" in layer:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return of


def learnt(name: str, how: str, levers: Mapping[str, Any], folder: Any) -> tuple[list[float], Tensor]:
    """The losses of one update, and the adapter's gradients."""
    torch.manual_seed(0)
    of, learner = policy(name, levers, folder), method(how, **METHODS[how])
    experience = learner.collect(of, PROMPTS[:2], PixelReward(red), 0, 0)
    losses = []
    for loss in learner.losses(of, experience):
        loss.total.backward()
        losses.append(float(loss.total.detach()))
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in of.named_trainable().values()]
    return losses, torch.cat([grad.flatten() for grad in grads])


def case(name: str, how: str, levers: tuple[str, ...]) -> Any:
    absent = [NEEDS[lever] for lever in levers if lever in NEEDS and find_spec(NEEDS[lever]) is None]
    quick = name == "stable-diffusion-3" and levers in QUICK
    marks = [] if quick else [pytest.mark.slow]
    if absent:
        marks.append(pytest.mark.skip(reason=f"{absent[0]} is no part of the test extra"))
    return pytest.param(name, how, levers, marks=marks, id=f"{name}-{how}-{'+'.join(levers)}")


CASES = [
    case(name, how, levers)
    for name in CHOSEN
    for how in METHODS
    for levers in (*((lever,) for lever in LEVERS if lever not in QUANTIZED), *PAIRS)
]


@pytest.mark.parametrize(("name", "how", "levers"), CASES)
def test_losses_and_gradients_are_those_without_levers(
    name: str, how: str, levers: tuple[str, ...], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = {key: value for lever in levers for key, value in LEVERS[lever].items()}
    if "blocks" in levers and not {*QUANTIZED}.isdisjoint(levers):
        beside["gradient_checkpointing"] = True  # of quantised blocks it is needed
    base = {key: value for key, value in beside.items() if key == "quantization"}
    wanted, slope = learnt(name, how, base, tmp_path)
    assert bool(slope.any())
    if "offload" in beside:
        poison(monkeypatch)
    for _ in range(2 if "cache" in beside else 1):  # once kept, once found
        losses, found = learnt(name, how, beside, tmp_path)
        assert losses == wanted
        assert torch.equal(found, slope)
