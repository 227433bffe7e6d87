"""Networks that are on the device only while they are asked; the others wait on the CPU.

Of several networks, or of the blocks of one, the one that was asked last is there, as a copy of its own: what a graph
keeps of it for the backward pass stays what it was. A graph of blocks keeps which weights it needs, and the block comes
again when they are. What is trained never leaves. (The hooks of diffusers' group offload move a LoRA away with its
block, and exchange the data of the very parameters that convolutions and norms read again in the backward pass.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genalign.types import GenalignError, UsageError

ASKED = ("forward", "encode", "decode")
PLAIN = (Tensor, nn.Parameter)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Lent:
    """A tensor of a unit's weights, which a graph will need again: of which parameter, and which view of it. home: the
    parameter that waits on the CPU; state: see `_state`."""

    residence: Residence
    unit: str
    module: nn.Module
    parameter: str
    home: nn.Parameter
    state: tuple[int, int]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt


class Residence:
    """Units, of which one at a time is on the device. Raises UsageError where another library moves one already.

    units: networks by name. inner: by the name of a unit, another Residence of parts of it, which move by themselves
    and leave with it. present: which unit is there; none at first, when all are on the CPU. moves: how often one came.
    """

    def __init__(
        self, units: Mapping[str, nn.Module], device: torch.device, inner: Mapping[str, Residence] | None = None
    ) -> None:
        self.units, self.device, self.inner = dict(units), device, dict(inner or {})
        self.present: set[str] = set()
        self.moves = 0
        self._staying = False
        self._returns: list[Callable[[], None]] = []
        self._homes: dict[str, list[nn.Module]] = {}  # of each unit the modules that hold tensors
        # By where its data lie: unit, module and name of a parameter, and the one that waits on the CPU.
        self._there: dict[int, tuple[str, nn.Module, str, nn.Parameter]] = {}
        for name, unit in self.units.items():
            if hasattr(unit, "_hf_hook") or hasattr(unit, "_diffusers_hook"):
                raise UsageError(
                    f"{name} is moved by hooks of another library; remove them, or leave policy.offload out"
                )
            for method in ASKED:
                if hasattr(unit, method):
                    setattr(unit, method, self._bringing(name, getattr(unit, method)))
            for module in unit.modules():
                if module is not unit:  # pipelines ask for a part of a network, and backward passes for one of a block
                    module.register_forward_pre_hook(lambda *_, name=name: self.bring(name))

    def _bringing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def ask(*args: Any, **kwargs: Any) -> Any:
            self.bring(name)
            return real(*args, **kwargs)

        return ask

    def bring(self, name: str) -> None:
        """See that a unit is on the device, and, but within staying(), no other."""
        if name in self.present:
            return
        if not self._staying:
            self.leave()
        self.present.add(name)
        self.moves += 1
        known: dict[int, nn.Parameter] = {}
        for module in self._holding(name):
            self._lend(name, module, known)

    def _holding(self, name: str) -> list[nn.Module]:
        if name not in self._homes:
            apart = {id(part) for part in self.inner[name].units.values()} if name in self.inner else set()
            self._homes[name] = [module for module in modules_outside(self.units[name], apart) if _own(module)]
        return self._homes[name]

    def bring_network(self, network: nn.Module) -> None:
        """The same, by the network itself, where it is one of the units."""
        for name, unit in self.units.items():
            if unit is network:
                self.bring(name)

    def leave(self) -> None:
        """See that no unit is on the device."""
        for inner in self.inner.values():
            inner.leave()
        for back in self._returns:
            back()
        self._returns.clear()
        self._there.clear()
        self.present.clear()

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Within the context what was asked stays beside what is asked."""
        self.leave()
        each = [self, *self.inner.values()]
        for one in each:
            one._staying = True
        try:
            yield
        finally:
            for one in each:
                one._staying = False
                one.leave()

    def graphs_without_blocks(self) -> AbstractContextManager[Any]:
        """Within the context graphs keep no weights of blocks, but which they need: the blocks come again for them."""
        if not self.inner or not torch.is_grad_enabled():
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(self._note, _fetched)

    def _note(self, tensor: Tensor) -> Tensor | Lent:
        """What a graph keeps of a tensor that it needs."""
        for residence in self.inner.values():
            there = residence._there.get(tensor.untyped_storage().data_ptr())
            if there is not None:
                return Lent(
                    residence, *there, _state(there[-1]), tensor.size(), tensor.stride(), tensor.storage_offset()
                )
        return tensor

    def _lend(self, unit: str, module: nn.Module, known: dict[int, nn.Parameter]) -> None:
        """Put copies of a module's own frozen tensors in their place. known: copies that other modules share."""
        frozen = [tensor for tensor in _own(module) if not tensor.requires_grad]
        if any(type(tensor) not in PLAIN for tensor in frozen):  # quantised: parts beside the data move along
            module.to(self.device)
            self._returns.append(functools.partial(_to_cpu, module))
            return
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.requires_grad:
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(self.here(parameter.data), requires_grad=False)
                copy = module._parameters[name] = known[id(parameter)]
                self._there[copy.untyped_storage().data_ptr()] = (unit, module, name, parameter)
                self._returns.append(functools.partial(self._send_back, module, name, parameter, copy.data))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(self.device)
                self._returns.append(functools.partial(_put_buffer, module, name))

    def _send_back(self, module: nn.Module, name: str, home: nn.Parameter, copied: Tensor) -> None:
        lent = module._parameters[name]
        assert lent is not None
        if lent.dtype != home.dtype or lent.data_ptr() != copied.data_ptr():  # a pipeline has cast its autoencoder
            home.data = self.away(lent.data)
        module._parameters[name] = home

    def here(self, data: Tensor) -> Tensor:
        """What a parameter holds while its unit is on the device."""
        return data.to(self.device)

    def away(self, data: Tensor) -> Tensor:
        """What it holds while that is away."""
        return data.to(CPU)


def _fetched(kept: Tensor | Lent) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    if _state(kept.home) != kept.state:
        raise GenalignError(
            f"{kept.unit}: its weights were changed before the backward pass, so gradients would be those of another"
            " network; set policy.offload to phases"
        )
    kept.residence.bring(kept.unit)
    weight = kept.module._parameters[kept.parameter]
    assert weight is not None
    return weight.data.as_strided(kept.size, kept.stride, kept.offset)


def _state(home: nn.Parameter) -> tuple[int, int]:
    """Where its data lie, and how often they were written to."""
    return home.data_ptr(), home._version


def _own(module: nn.Module) -> list[Tensor]:
    return [x for x in (*module._parameters.values(), *module._buffers.values()) if x is not None]


def _to_cpu(module: nn.Module) -> None:
    module.to(CPU)


def _put_buffer(module: nn.Module, name: str) -> None:
    buffer = module._buffers[name]
    module._buffers[name] = None if buffer is None else buffer.to(CPU)


def residence_of(pipeline: Any, denoisers: Collection[str], device: torch.device, blocks: bool) -> Residence:
    """Of a pipeline's networks, one at a time; blocks: and of each denoiser the blocks, one at a time.

    Raises UsageError where a denoiser has no blocks.
    """
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    inner = {}
    for name in denoisers if blocks else ():
        parts = blocks_of(networks[name])
        if not parts:
            raise UsageError(f"{type(networks[name]).__name__} has no lists of blocks; set policy.offload to phases")
        inner[name] = Residence(parts, device)
    return Residence(networks, device, inner)


def blocks_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The members of its lists of modules, as diffusers' group offload takes them at the level of blocks."""
    return {
        f"{name}.{place}": block
        for name, part in denoiser.named_children()
        if isinstance(part, nn.ModuleList)
        for place, block in part.named_children()
    }


def modules_outside(module: nn.Module, apart: Collection[int]) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        if id(child) not in apart:
            yield from modules_outside(child, apart)
