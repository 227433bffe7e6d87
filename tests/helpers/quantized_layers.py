"""Layers in few bits, and dense ones that hold the weights that they stand for."""

from __future__ import annotations

from typing import Any

from torch import nn

KINDS = {"bitsandbytes-nf4": "bitsandbytes", "bitsandbytes-int8": "bitsandbytes", "torchao-int8": "torchao",
         "torchao-float8": "torchao"}  # fmt: skip
REASON = "an extra that the tests do not install, since it makes importing diffusers slower: genalign[quantization]"


def dequantized(layer: nn.Module) -> nn.Linear:
    """A dense layer with the weights that a quantised one stands for, by the package's own function."""
    held: Any = layer
    dense = nn.Linear(held.in_features, held.out_features, bias=held.bias is not None)
    if hasattr(held.weight, "quant_state"):
        import bitsandbytes.functional as F

        weight = F.dequantize_4bit(held.weight.data, held.weight.quant_state)
    elif hasattr(held, "state") and held.state.CB is not None:  # where the first product put them
        weight = held.state.CB.float() * held.state.SCB[:, None] / 127
    else:
        weight = held.weight.dequantize()
    dense.weight = nn.Parameter(weight.float(), requires_grad=False)
    dense.bias = held.bias
    return dense


def named(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    return [
        (module, name, child)
        for name, child in module.named_children()
        if isinstance(child, nn.Linear) and not hasattr(module, "base_layer")
    ]
