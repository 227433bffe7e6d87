"""The frozen base split over ranks by torch's fully_shard (FSDP2, arXiv 2304.11277); each rank has the whole adapter.

Each block of a network is one group of weights, and what is in no block another: a rank holds its part of them, and all
ranks together gather a group before it computes and let go of it afterwards, in forward and in backward passes. Ranks
need not compute the same number of passes: which group is gathered is voted on (genalign.ranks.Turns).

Departs from FSDP's defaults: nothing is gathered ahead, and the group of what is in no block is let go after a forward
pass as well.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from genalign.ranks import Turns, take_turns, world
from genalign.training.backend import Replicated
from genalign.training.settings import TrainSettings
from genalign.training.shares import blocks, kept_whole, part_rows
from genalign.types import GenalignError, Policy, Shardable, UsageError

log = logging.getLogger("genalign")
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.14


class Sharded(Replicated):
    """Several processes that each hold a part of the frozen weights; in a single one, nothing is split."""

    def __init__(self) -> None:
        self.networks: list[Any] = []
        self._gatherings: list[InTurn] = []

    def prepare(self, policy: Policy, settings: TrainSettings) -> None:
        if not isinstance(policy, Shardable):
            raise UsageError(f"{type(policy).__name__} cannot be split over ranks; set train.backend=replicated")
        if world() > 1:
            turns = take_turns()

            def split(network: nn.Module) -> None:
                self.networks.append(network)
                self._gatherings += shard(network, turns)

            policy.shard(split)
        else:
            log.warning("train.backend is fsdp2, but there is one process, which holds the whole model")
        super().prepare(policy, settings)

    def held(self) -> tuple[int, int]:
        """Bytes of frozen weights of the networks that are split: those on this rank, padding among them, and all."""
        from torch.distributed.tensor import DTensor

        frozen = [p for network in self.networks for p in network.parameters() if not p.requires_grad]
        here, whole = 0, sum(p.numel() * p.element_size() for p in frozen)
        for p in frozen:
            here += p.to_local().untyped_storage().nbytes() if isinstance(p, DTensor) else p.numel() * p.element_size()
        return here, whole

    def received(self) -> int:
        """Bytes of weights that this rank was sent by the others up to now; all ranks are sent as many."""
        return sum(gathering.received for gathering in self._gatherings)

    def forget(self) -> None:
        super().forget()
        for network in self.networks:  # a pass that ended by an error left it in the middle
            if hasattr(network, "reset_iter_state"):
                network.reset_iter_state()


BACKENDS: dict[str, type[Replicated]] = {"replicated": Replicated, "fsdp2": Sharded}


def shard(network: Any, turns: Turns) -> list[InTurn]:
    """Split the frozen weights of a network over all ranks, in place, once; what is trained stays whole on each.

    Returns how each of its groups is gathered.

    Raises:
        UsageError: this torch cannot do it. GenalignError: it lays the parts out in another way than is known here.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if not hasattr(FSDPModule, "set_custom_all_gather"):
        raise UsageError(f"train.backend fsdp2 needs a newer torch than {torch.__version__}; upgrade it")
    if isinstance(network, FSDPModule):
        return []
    groups = [*blocks(network), network]
    whole = kept_whole(groups)
    mesh = init_device_mesh(next(network.parameters()).device.type, (world(),))
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()
    split: list[Any] = []
    for module in groups:
        if all(parameter in whole for parameter in module.parameters()):
            continue
        if module is not network:
            module.register_forward_hook(lambda _, given, out: _owned(out))
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        split.append(module)
    gatherings: list[InTurn] = []
    for number, module in enumerate(split):
        inner = {id(part) for other in split[:number] for part in other.modules()}
        gatherings.append(InTurn(_parts(module, inner, whole), mesh.get_group(), turns))
        module.set_custom_all_gather(gatherings[-1])
        module.set_modules_to_backward_prefetch([module])  # itself, which is nothing
        module.unshard()  # the first time, where the layout is looked at
        module.reshard()
    # Whoever asks for the forward of a network without calling it (as a recorded pipeline does) gets its weights, too.
    forward = network.forward
    network.forward = functools.wraps(forward)(lambda *args, **kwargs: _owned(forward(*args, **kwargs)))
    register_fsdp_forward_method(network, "forward")
    # That alone: a network that is called while another forward stands in its place, as one that only notes what it is
    # given or serves what was recorded, gathers nothing.
    state = network._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    network.gathered = lambda computed: computed()  # what is computed with the network beside its forward
    register_fsdp_forward_method(network, "gathered")
    network.gathered(lambda: None)  # the first that FSDP hears of is the whole it belongs to
    return gatherings


class InTurn:
    """FSDP's all-gather of one group of weights, made when it is next.

    parts: this rank's part of each weight, and how many numbers the largest part of any rank has. received: bytes that
    the other ranks sent.
    """

    def __init__(self, parts: Sequence[tuple[Tensor, int]], group: dist.ProcessGroup, turns: Turns) -> None:
        self.parts, self.group, self.turns = parts, group, turns
        self.number = turns.add(self._take_part)
        self.received = 0
        self._known = False

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        if not self._known:
            self._look(input_tensor)
        self.turns.wait(self.number)
        self._count(input_tensor)
        return _all_gather(output_tensor, input_tensor, group=group, async_op=async_op)

    def _look(self, given: Tensor) -> None:
        """Frozen weights are what they were, so what FSDP sends once is what a rank that takes part must send."""
        mine = self._mine()
        if mine.dtype != given.dtype or not torch.equal(mine, given):
            raise GenalignError(
                f"torch {torch.__version__} lays the parts of split weights out in a way that genalign does not know; "
                f"set train.backend=replicated"
            )
        self._known = True

    def _take_part(self) -> None:
        mine = self._mine()
        self._count(mine)
        _all_gather(mine.new_empty(world() * len(mine)), mine, group=self.group)

    def _count(self, mine: Tensor) -> None:
        self.received += (world() - 1) * mine.numel() * mine.element_size()

    def _mine(self) -> Tensor:
        """All parts in one row, each padded with zeros; as bytes where they differ in type."""
        padded = [torch.nn.functional.pad(part.flatten(), (0, most - part.numel())) for part, most in self.parts]
        if len({part.dtype for part in padded}) > 1:
            padded = [part.view(torch.uint8) for part in padded]
        return torch.cat(padded)


def _owned(out: Any) -> Any:
    """What a group returns, none of it a view: where a view is written into later, FSDP never hears that the backward
    pass begins, and the weights would be missing there."""
    return tree_map_only(Tensor, lambda x: x.clone() if x.requires_grad and x._is_view() else x, out)


def _parts(module: nn.Module, inner: set[int], whole: set[nn.Parameter]) -> list[tuple[Tensor, int]]:
    """This rank's part of each weight of a group, in FSDP's order (children first), and the size of the largest."""
    found = {}
    for part in _children_first(module, inner):
        for parameter in part.parameters(recurse=False):
            if parameter not in whole:
                local = parameter.to_local()  # type: ignore[attr-defined]
                found[parameter] = local, part_rows(parameter, world()) * math.prod(parameter.shape[1:])
    return list(found.values())


def _children_first(module: nn.Module, inner: set[int]) -> Iterator[nn.Module]:
    for child in module.children():
        if id(child) not in inner:
            yield from _children_first(child, inner)
    yield module
