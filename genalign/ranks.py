"""What a process group does for methods and the loop; without one, each is the identity. And how a rank ends.

Where weights are split over ranks (training/sharded.py), ranks gather them as often as their own samples ask for, which
differs from rank to rank. So collectives are then made in turn: see `Turns`.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from genalign.types import GenalignError, Scores


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if _running() else 0


def world() -> int:
    return dist.get_world_size() if _running() else 1


@contextmanager
def _together() -> Iterator[None]:
    """A collective within.

    Raises:
        GenalignError: another rank is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistBackendError | dist.DistNetworkError) and "Connection" not in str(error):
            raise
        raise GenalignError(
            "another rank has ended, so this one cannot go on; look for what that one said, and resume the run"
        ) from error


class Turns:
    """Collectives of which each rank makes its own number, in its own order, made by all ranks together.

    Ranks vote before each of them, and the largest number of a vote is next: a rank that asked for it goes on, and one
    that asked for another takes part in it and votes again. 0 stands for what all ranks do as often (the functions of
    this module), so that whoever comes there takes part in the others' collectives until they are there too.
    """

    def __init__(self) -> None:
        self._voters: Any = dist.new_group(backend="gloo")  # on CPUs: a vote does not wait for what a device computes
        self._parts: list[Callable[[], None]] = []

    def add(self, take_part: Callable[[], None]) -> int:
        """The number of a further collective. take_part: makes it on a rank that did not ask for it."""
        self._parts.append(take_part)
        return len(self._parts)

    def wait(self, number: int) -> None:
        """Return when the collective of this number is next on all ranks."""
        while (following := self._vote(number)) != number:
            self._parts[following - 1]()

    def _vote(self, number: int) -> int:
        largest = torch.tensor([number])
        with _together():
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._voters)
        return int(largest)


_turns: Turns | None = None


def take_turns() -> Turns:
    """From now on collectives are made in turn. All ranks call this together."""
    global _turns
    _turns = _turns or Turns()
    return _turns


def _meet() -> None:
    """Before a collective that all ranks make."""
    if _turns is not None:
        _turns.wait(0)


@_together()
def gather(tensor: Tensor) -> Tensor:
    """The rows of all ranks, in rank order; ranks may hold unequal numbers of rows, none included.

    All ranks must agree on the dtype and on the trailing dimensions. Gradients do not pass.
    """
    if world() == 1:
        return tensor
    _meet()
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


@_together()
def all_sum(tensor: Tensor) -> Tensor:
    """The elementwise sum over ranks, on every rank; the argument is left as it was."""
    if world() == 1:
        return tensor
    _meet()
    total = tensor.detach().to(_device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def leave(code: int) -> NoReturn:
    """End this rank. A process that has been in a group must not finalise its interpreter: now and then threads of
    torch that are still there abort it ("terminate called without an active exception"), after all is written, and
    the launcher reports a failure. A rank that has done its work stays until the others need no weights of it.
    """
    if code == 0:
        _meet()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _device() -> torch.device:
    """Where collectives run: NCCL carries CUDA tensors only, gloo carries those of the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")
