"""What saves memory in a network of transformers: layers that are computed again, and layers that wait on the CPU.

transformers' own gradient checkpointing is for networks in training mode, in which dropout draws; here a network is in
eval mode, so that what is recorded is replayed. Its layers are those that transformers itself would compute again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from genalign.policy.recompute import recomputed
from genalign.policy.residence import Residence
from genalign.policy.settings import PolicySettings
from genalign.types import UsageError

MODEL = "model"


class Saving:
    """`policy.gradient_checkpointing` and `policy.offload` of one network; neither changes a number.

    offload phases: the network is on the device while it samples and while it learns, and else on the CPU, where it
    is given. blocks: of its layers the one that is computed alone is there.

    device: where it computes; None: where it is.

    Raises UsageError where the network's class has no layers that can be computed again.
    """

    def __init__(self, model: nn.Module, settings: PolicySettings, device: torch.device | None = None) -> None:
        self.names = tuple(name for name in ("gradient_checkpointing", "offload") if getattr(settings, name))
        self._model, self._again = model, settings.gradient_checkpointing
        self._residence: Residence | None = None
        layers = layers_of(model) if self._again or settings.offload == "blocks" else {}
        if settings.offload is not None:
            at = self.device if device is None else device
            inner = {MODEL: Residence(layers, at)} if settings.offload == "blocks" else {}
            self._residence = Residence({MODEL: model}, at, inner)
        for layer in layers.values():
            layer.forward = self._recomputing(layer.forward)

    @property
    def device(self) -> torch.device:
        if self._residence is not None:
            return self._residence.device
        return next(self._model.parameters()).device

    def bring(self) -> None:
        """See that the network is where it computes."""
        if self._residence is not None:
            self._residence.bring(MODEL)

    def leave(self) -> None:
        """See that it is away, if it may be."""
        if self._residence is not None:
            self._residence.leave()

    def graphs(self) -> AbstractContextManager[Any]:
        """Where a graph may be recorded, which then keeps no weights of layers that wait elsewhere."""
        return nullcontext() if self._residence is None else self._residence.graphs_without_blocks()

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Within the context nothing is computed again, and what is brought stays."""
        again, self._again = self._again, False
        try:
            with self._residence.staying() if self._residence is not None else nullcontext():
                yield
        finally:
            self._again = again

    def _recomputing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._again and torch.is_grad_enabled():
                return recomputed(real, *args, **kwargs)
            return real(*args, **kwargs)

        return forward


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network by name, of its towers too: none is a part of another.

    Raises:
        UsageError: there are none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = name.startswith(tuple(f"{known}." for known in found))
        if isinstance(module, GradientCheckpointingLayer) and not inside:
            found[name] = module
    if not found:
        raise UsageError(
            f"{type(model).__name__} has no layers that can be computed again; leave policy.gradient_checkpointing out,"
            " and lower policy.batch_size to save memory"
        )
    return found
