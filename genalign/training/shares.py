"""How a network is split over ranks, and what that saves and moves: bytes from shapes alone.

Each block of a network is one group of weights, and what is in no block another. A group's weights are cut along their
first dimension into as many parts as there are ranks, all of the size of the largest (FSDP2, arXiv 2304.11277).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Share:
    """Bytes of a network's frozen weights and buffers.

    held: on each rank between passes. beside: gathered at most, while it computes. received: by each rank from the
    others when every group is gathered once, as a forward pass does, and a backward pass again.
    """

    whole: int
    held: int
    beside: int
    received: int


def share(network: nn.Module, ranks: int) -> Share:
    """What each of several ranks has of a network, its adapter left out."""
    modules = [*blocks(network), network]
    stays = kept_whole(modules)
    seen: set[nn.Parameter] = set(stays)
    groups: list[list[nn.Parameter]] = []
    for module in modules:
        groups.append([parameter for parameter in module.parameters() if parameter not in seen])
        seen.update(groups[-1])
    *inner, outer = [sum(map(_bytes, group)) for group in groups]
    unsplit = sum(_bytes(x) for x in (*stays, *network.buffers()) if not x.requires_grad)
    parts = sum(part_rows(p, ranks) * math.prod(p.shape[1:]) * p.element_size() for group in groups for p in group)
    # What has come is there twice, as it was sent and laid out as weights; what is in no block stays meanwhile.
    beside = outer + max(outer, 2 * max(inner, default=0))
    return Share(sum(inner) + outer + unsplit, parts + unsplit, beside, (ranks - 1) * parts)


def part_rows(parameter: Tensor, ranks: int) -> int:
    """Rows of the largest part; the others are padded to it."""
    return -(-parameter.shape[0] // ranks)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of a network's outermost lists of modules."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from blocks(child)


def kept_whole(modules: Sequence[nn.Module]) -> set[nn.Parameter]:
    """Parameters that are not split: what is trained, what has no dimension, and what several blocks share.

    modules: the blocks, and the network last.
    """
    owners = Counter(parameter for block in modules[:-1] for parameter in block.parameters())
    return {p for p in modules[-1].parameters() if p.requires_grad or p.ndim == 0 or owners[p] > 1}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
