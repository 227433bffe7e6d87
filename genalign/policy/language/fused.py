"""Log-probabilities of a frozen output layer, and their gradients, computed while a chunk's logits are there.

Fused linear cross-entropy (Liger-Kernel, arXiv 2410.10989): what is kept for the backward pass is one vector of the
hidden width a token, whatever the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from genalign.policy.language.head import Head


class Fused(torch.autograd.Function):
    """Head.scores of a frozen product. With p the distribution, d = log p - log q and T the temperature, the gradients
    to the logits z / T are (one-hot - p) of log p, and p (d - KL) of KL."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, other: Tensor | None, tokens: Tensor, head: Head) -> Any:
        graph, columns = ctx.needs_input_grad[0], 1 if other is None else 3
        found: list[list[Tensor]] = [[] for _ in range(columns)]
        slopes: list[list[Tensor]] = [[], []]
        for h, y, o in head.chunks(hidden, tokens, other):
            scored, gradients = Fused._chunk(head, h, y, o, graph)
            for column, value in zip(found, scored, strict=True):
                column.append(value)
            for column, value in zip(slopes, gradients, strict=False):
                column.append(value)
        ctx.set_materialize_grads(False)  # of what nothing was computed from
        ctx.save_for_backward(*(torch.cat(column) for column in slopes if column))
        joined = tuple(torch.cat(column) if column else hidden.new_zeros(0, dtype=torch.float32) for column in found)
        if other is None:
            return joined[0]
        ctx.mark_non_differentiable(joined[1])
        return joined

    @staticmethod
    def _chunk(head: Head, hidden: Tensor, tokens: Tensor, other: Tensor | None, graph: bool) -> Any:
        """(log p; log q and KL), and the gradients (n,H) of log p and KL."""
        logits = head.logits(hidden)
        slope = _slope(head, logits) if graph else None
        z, p, total = _shifted(head, logits)
        at = tokens[:, None]
        score = (z.gather(-1, at) - total.log())[:, 0]
        if other is None:
            return (score,), [_to_hidden(head, _minus(p.div_(-total), at), slope)] if graph else []
        apart, p = z.sub_(total.log()), p.div_(total)
        logq, _, total = _shifted(head, head.logits(other))
        logq.sub_(total.log())
        theirs = logq.gather(-1, at)[:, 0]
        apart.sub_(logq)
        if len(head.forbidden):
            apart.index_fill_(-1, head.forbidden.to(z.device), 0.0)
        kl = torch.einsum("nv,nv->n", p, apart)
        gradients = []
        if graph:
            of_kl = _to_hidden(head, apart.sub_(kl[:, None]).mul_(p), slope)
            gradients = [_to_hidden(head, _minus(p.neg_(), at), slope), of_kl]
        return (score, theirs, kl.clamp(min=0)), gradients

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        total: Tensor | None = None
        for gradient, to_hidden in zip((gradients[0], gradients[-1]), ctx.saved_tensors, strict=False):
            if gradient is not None:
                part = (gradient[:, None] * to_hidden).to(to_hidden.dtype)
                total = part if total is None else total + part
        return total, None, None, None


def _shifted(head: Head, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z / T (n,V) less its largest, in place of `logits`; the powers of e of that, and their sum (n,1)."""
    z = head.masked(logits.div_(head.temperature) if head.temperature != 1 else logits)
    z.sub_(z.amax(-1, keepdim=True))
    powers = z.exp()
    return z, powers, powers.sum(-1, keepdim=True)


def _slope(head: Head, logits: Tensor) -> Tensor | float:
    """The derivative of z / T by what the product gives."""
    slope = head.factor / head.temperature
    return slope if head.cap is None else slope * (1 - (logits / head.cap).square())


def _minus(negative: Tensor, at: Tensor) -> Tensor:
    """one-hot - p, in place of -p."""
    return negative.scatter_add_(-1, at, torch.ones_like(at, dtype=negative.dtype))


def _to_hidden(head: Head, gradient: Tensor, slope: Any) -> Tensor:
    """From the logits z / T (n,V) to the hidden states (n,H)."""
    weight: Tensor = head.layer.weight  # type: ignore[union-attr, assignment]
    scaled = gradient.mul_(slope) if isinstance(slope, Tensor) else gradient
    out = scaled.to(weight.dtype) @ weight
    return out if isinstance(slope, Tensor) or slope == 1 else out.mul_(slope)
