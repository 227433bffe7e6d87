"""A linear layer and its LoRA as one sum of products."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import Linear
from torch import Tensor, nn


class LoraLinear(Linear):
    """peft's layer with one adapter: W x + scale B A x (Hu et al. 2021), in the precision of x.

    peft scales the adapter's output and adds it in passes of their own over what the layer makes, and rounds in each.
    Here scale is part of B, and the product with B is added where it is computed. Parameters of another dtype are cast
    to that of x, as autocast would have it.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        rows = x.reshape(-1, x.shape[-1])  # copied once where it is part of a larger tensor, and not in each product
        out: Tensor = self.base_layer(rows)  # under autocast of another dtype than x
        if not self.disable_adapters:
            (name,) = self.lora_A
            narrow = rows @ self.lora_A[name].weight.to(x.dtype).T  # (N, rank)
            up = self.scaling[name] * self.lora_B[name].weight  # (out, rank)
            out.addmm_(narrow.to(out.dtype), up.to(out.dtype).T)
        return out.view(*x.shape[:-1], out.shape[-1])


def as_one_sum(layer: nn.Module) -> bool:
    """Let a layer that peft made compute so from now on, in place; False where it is of another kind, such as one of
    convolutions or of quantised weights, which stays peft's."""
    if type(layer) is not Linear or layer.lora_variant:
        return False
    layer.__class__ = LoraLinear
    return True
