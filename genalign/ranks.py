"""What a process group does for methods and the loop; without one, each is the identity. And how a rank ends."""

from __future__ import annotations

import atexit
import os
import sys
from dataclasses import replace
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from genalign.types import Scores


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _running() else 0


def world() -> int:
    return dist.get_world_size() if _running() else 1


def gather(tensor: Tensor) -> Tensor:
    """The rows of all ranks, in rank order; ranks may hold unequal numbers of rows, none included.

    All ranks must agree on the dtype and on the trailing dimensions. Gradients do not pass.
    """
    if world() == 1:
        return tensor
    here = tensor.detach().to(_device()).contiguous()
    lengths = [torch.zeros(1, dtype=torch.long, device=here.device) for _ in range(world())]
    dist.all_gather(lengths, torch.tensor([len(here)], device=here.device))
    longest = int(torch.stack(lengths).max())
    wire = here.to(torch.uint8) if here.dtype == torch.bool else here  # not every backend carries bool
    padded = wire.new_zeros(longest, *wire.shape[1:])
    padded[: len(wire)] = wire
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded)
    rows = torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])
    return rows.to(tensor.device, tensor.dtype)


def gather_scores(scores: Scores) -> Scores:
    """The scores of all ranks' rows, in rank order. `info` stays behind where there are several ranks.

    All ranks must agree on whether there is a confidence and a std.
    """
    if world() == 1:
        return scores
    return replace(
        scores,
        values=gather(scores.values),
        valid=gather(scores.valid),
        failed=gather(scores.failed),
        total=gather(scores.total),
        total_valid=gather(scores.total_valid),
        confidence=None if scores.confidence is None else gather(scores.confidence),
        std=None if scores.std is None else gather(scores.std),
        info={},
    )


def all_sum(tensor: Tensor) -> Tensor:
    """The elementwise sum over ranks, on every rank; the argument is left as it was."""
    if world() == 1:
        return tensor
    total = tensor.detach().to(_device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def leave(code: int) -> NoReturn:
    """End this rank. A process that has been in a group must not finalise its interpreter: now and then threads of
    torch that are still there abort it ("terminate called without an active exception"), after all is written, and
    the launcher reports a failure.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _device() -> torch.device:
    """Where collectives run: NCCL carries CUDA tensors only, gloo carries those of the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")
