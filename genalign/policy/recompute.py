"""Blocks of a network that are computed again in the backward pass, and a check that nothing changed in between.

Gradient checkpointing (Chen et al., arXiv 1604.06174) keeps what each block is given, and nothing of what it computes.
Whatever a pipeline sets for the time of its run alone (a kind of attention, a LoRA scale, weights that were lent) is
gone when the blocks are computed again: no error, and gradients of another network. So each block's output is summed
both times, and the sums must be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from genalign.policy.memo import tensors
from genalign.types import GenalignError, UsageError


def recompute_blocks(denoiser: nn.Module) -> None:
    """Let the denoiser compute its blocks again, by diffusers' own switch. Raises UsageError where it has none."""
    network: Any = denoiser
    if not getattr(network, "_supports_gradient_checkpointing", False):
        raise UsageError(
            f"{type(denoiser).__name__} has no blocks that can be computed again; leave policy.gradient_checkpointing"
            " out, and lower policy.batch_size to save memory"
        )
    network.enable_gradient_checkpointing(recomputed)


def recomputed(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """block(*args, **kwargs), of which the backward pass computes everything again."""
    before: list[Tensor] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        out = block(*args, **kwargs)
        sums = [x.detach().sum(dtype=torch.float32) for x in tensors(out)]
        if not before:
            before.extend(sums)
        elif not all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(before, sums, strict=True)):
            kind = type(getattr(block, "__self__", block)).__name__
            raise GenalignError(
                f"{kind} computed something else in the backward pass than before, so its gradients"
                " are wrong; set policy.gradient_checkpointing to false"
            )
        return out

    # Networks in eval mode draw nothing. Without an early stop a block is computed to its end, where it is compared.
    with set_checkpoint_early_stop(False):
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
