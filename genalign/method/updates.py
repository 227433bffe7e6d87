"""A rollout's micro-batches, dealt to optimizer updates alike on all ranks, in units for which memory is enough."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from genalign.ranks import all_sum
from genalign.types import Experience, GenalignError, Loss, Policy, Trajectory, UsageError

Block = TypeVar("Block")
log = logging.getLogger("genalign")


def packed(pairs: Tensor, rows: int) -> list[Tensor]:
    """Micro-batches of pairs: which of pairs (P,2), in their order, as many as have at most `rows` samples, or one."""
    begun, held = [0], set[int]()
    for k, pair in enumerate(pairs.tolist()):
        if k > begun[-1] and len(held.union(pair)) > rows:
            begun.append(k)
            held.clear()
        held.update(pair)
    return [*torch.arange(len(pairs)).tensor_split(begun[1:])] if len(pairs) else []


def deal(
    blocks: Sequence[Block], counts: Sequence[float], updates: int, trajectory: Trajectory
) -> list[tuple[list[Block], float]]:
    """Deal micro-batches out to optimizer updates: for each, this rank's blocks that count, and the global count.

    Blocks go round in turns, so that ranks with equally many blocks (a multiple of `updates`) make the same updates as
    one rank with all of them. An update in which nothing counts on any rank is left out: its gradient would be zero.
    (Ties may leave fewer blocks than updates, or none; what must suffice is the rollout that they came from.)

    Raises:
        UsageError: there are fewer micro-batches than updates (on all ranks alike).
    """
    rolled = -(-len(trajectory.prompts) // trajectory.rows_together)
    local = [[float(rolled > k), float(sum(counts[k::updates]))] for k in range(updates)]
    everyone = all_sum(torch.tensor(local, dtype=torch.float64)).tolist()
    enough = sum(ranks > 0 for ranks, _ in everyone)
    if enough < updates:
        raise UsageError(
            f"method.updates_per_rollout is {updates}, but a rollout has only {enough} micro-batches a rank; "
            f"lower it or policy.batch_size"
        )
    dealt = []
    for k, (_, total) in enumerate(everyone):
        here = zip(blocks[k::updates], counts[k::updates], strict=True)
        if total:
            dealt.append(([block for block, count in here if count], total))
    return dealt


def row_units(
    experience: Experience, per_row: bool = False
) -> tuple[list[list[tuple[list[int], list[int]]]], list[float]]:
    """A rollout's micro-batches, each as the (rows, steps) units in which anything counts, and how much counts in each.

    What is counted are recorded steps of counted rows, or (`per_row`) counted rows.
    """
    trajectory = experience.trajectory
    assert experience.counted is not None
    steps = trajectory.mask.cpu() & experience.counted[:, None]  # (B,S)
    weight = steps.any(1, keepdim=True) if per_row else steps
    rows = range(len(trajectory.prompts))
    blocks = [list(rows[i : i + trajectory.rows_together]) for i in rows[:: trajectory.rows_together]]
    units = [[unit for unit in trajectory.units(block) if steps[unit[0]][:, unit[1]].any()] for block in blocks]
    return units, [float(weight[block].sum()) for block in blocks]


def emit(policy: Policy, units: Sequence[Block], loss: Callable[[Block], Loss]) -> Iterator[Loss]:
    """The losses of one optimizer update; the last has step=True, which a rank without rows owes as well.

    A unit is rows (or pairs), alone or as the first of a tuple. Where memory is not enough for a unit, forward here or
    backward in the loop (which throws the error in), the update begins anew with units half as large, and later ones
    have that size from the start. Ranks do so each for itself.

    Raises:
        GenalignError: memory is not enough for a unit of one row.
    """
    cut, done, anew = _of_size(units, _ENOUGH.get(policy)), 0, False
    while done < len(cut):
        enough = True
        try:
            yield replace(loss(cut[done]), step=done == len(cut) - 1, anew=anew)
        except torch.OutOfMemoryError:
            enough = False  # and on, outside of the handler, which holds on to what was computed
        if enough:
            done, anew = done + 1, False
        else:
            _ENOUGH[policy] = _half(cut)
            cut, done, anew = _of_size(units, _ENOUGH[policy]), 0, True
    if not units:
        parameters = [p for group in policy.parameter_groups() for p in group["params"]]
        yield Loss(torch.stack([(p * 0.0).sum() for p in parameters]).sum(), step=True)


_ENOUGH: WeakKeyDictionary[Policy, int] = WeakKeyDictionary()  # rows for which memory was enough, where it once was not


def _half(units: Sequence[Any]) -> int:
    most = max(len(_rows(unit)) for unit in units)
    if most == 1:
        raise GenalignError(
            "memory is not enough for the update of a single row; what saves some is named by genalign train RECIPE "
            "--plan --card"
        )
    half = -(-most // 2)
    log.warning("memory is not enough for updates of %d rows at a time, so they go on with %d", most, half)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return half


def _of_size(units: Sequence[Block], most: int | None) -> list[Block]:
    """Units of at most `most` rows each; those that follow each other on the same rows still do."""
    if most is None:
        return list(units)
    cut: list[Any] = []
    for _, same in groupby(units, key=lambda unit: torch.as_tensor(_rows(unit)).tolist()):
        alike = list(same)
        for i in range(0, len(_rows(alike[0])), most):
            parts = [_rows(unit)[i : i + most] for unit in alike]
            cut += [
                (part, *unit[1:]) if isinstance(unit, tuple) else part for part, unit in zip(parts, alike, strict=True)
            ]
    return cut


def _rows(unit: Any) -> Any:
    return unit[0] if isinstance(unit, tuple) else unit
