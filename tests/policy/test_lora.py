"""The sum of a layer and its adapter, against peft's own forward and autograd in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from genalign.policy.adapter import Adapter
from genalign.policy.lora import LoraLinear, as_one_sum
from genalign.policy.settings import Lora


def adapted(bias: bool = True) -> Any:
    """A layer of peft's with an adapter that does something."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(24, 40, bias=bias))
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6, target_modules=["0"]), model)  # a scale of 1.5
    nn.init.normal_(model[0].lora_B["default"].weight, std=0.3)
    return model[0]


def results(layer: Any, x: Tensor) -> list[Tensor]:
    """What it makes of x, and the gradients of x, A and B."""
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum().backward()
    found = [out, x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]
    return [tensor.detach().double() for tensor in found if tensor is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (3, 24), (2, 5, 24), (0, 24)])
def test_value_and_gradients_are_those_of_peft(shape: tuple[int, ...], bias: bool) -> None:
    peft, ours = (adapted(bias) for _ in range(2))
    assert as_one_sum(ours)
    x = torch.randn(shape)
    exact = results(copy.deepcopy(peft).double(), x.double())
    assert len(exact) == 4
    for mine, wanted in zip(results(ours, x), exact, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


def test_part_of_a_larger_tensor_is_read_and_left_as_it_was() -> None:
    layer = adapted()
    whole = torch.randn(2, 9, 24)
    before, wanted = whole.clone(), layer(whole[:, 2:7].contiguous())
    assert as_one_sum(layer)
    torch.testing.assert_close(layer(whole[:, 2:7]), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(whole, before)


def test_half_precision_rounds_no_worse_than_peft() -> None:
    x = torch.randn(512, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    layer = adapted()
    layer.base_layer.bfloat16()
    exact = copy.deepcopy(layer).double()(x.double())
    layer.cast_input_dtype_enabled = False
    whole = copy.deepcopy(layer).bfloat16()
    assert as_one_sum(layer)
    ours, theirs = layer(x), whole(x)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() <= 1.02 * (theirs.double() - exact).norm()
    assert layer.lora_B["default"].weight.dtype == torch.float32


def test_under_autocast_it_makes_what_peft_makes() -> None:
    x, (peft, ours) = torch.randn(7, 24), (adapted() for _ in range(2))
    assert as_one_sum(ours)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, made = peft(x), ours(x)
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made, theirs.bfloat16(), rtol=2e-2, atol=2e-2)


def test_the_reference_is_the_bare_layer_to_the_bit() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(24, 40))
    x, bare = torch.randn(7, 24), copy.deepcopy(model)
    adapter = Adapter(model, Lora(rank=4, alpha=6.0, targets=["0"]))
    assert isinstance(model[0], LoraLinear)
    with torch.no_grad():
        adapter.named_trainable()["0.lora_B.weight"].normal_()
        with adapter.weights("reference"):
            assert torch.equal(model(x), bare(x))
        assert not torch.allclose(model(x), bare(x))


def test_a_fresh_adapter_is_the_reference_to_the_bit_also_on_part_of_a_tensor() -> None:
    model: Any = nn.Sequential(nn.Linear(24, 40)).bfloat16()
    adapter, part = Adapter(model, Lora(rank=4, targets=["0"])), torch.randn(6, 9, 24).bfloat16()[:, 2:7]
    with adapter.weights("reference"):
        bare = model(part)
    assert torch.equal(model(part), bare)


def test_layers_of_other_kinds_stay_as_peft_made_them() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), model)
    kind = type(model[0])
    assert not as_one_sum(model[0])
    assert type(model[0]) is kind
