"""The adapters of every denoiser that a pipeline samples with, as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from genalign.policy.adapter import Adapter
from genalign.policy.settings import Lora
from genalign.types import UsageError, Weights


class Adapters:
    """An Adapter for each denoiser, by the name of its component.

    Parameters of several have that name in front, and each is saved into a folder of that name; the one of a pipeline
    with a single denoiser is saved into the folder itself. device: where they stay.

    Raises UsageError where weights are elsewhere, so that nothing could be trained, or computed by other ranks, too.
    """

    def __init__(self, denoisers: Mapping[str, nn.Module], settings: Lora, device: torch.device | None = None) -> None:
        for model in denoisers.values():
            check_here(model)
            _check_alone(model)
        self.each = {name: Adapter(module, settings, device=device) for name, module in denoisers.items()}

    def folders(self, folder: Path) -> dict[str, Path]:
        """Where each is saved."""
        return {name: folder if len(self.each) == 1 else folder / name for name in self.each}

    def named_trainable(self) -> dict[str, nn.Parameter]:
        found = {}
        for name, adapter in self.each.items():
            front = "" if len(self.each) == 1 else f"{name}."
            found.update({front + layer: parameter for layer, parameter in adapter.named_trainable().items()})
        return found

    @contextmanager
    def weights(self, which: Weights) -> Iterator[None]:
        with ExitStack() as stack:
            for adapter in self.each.values():
                stack.enter_context(adapter.weights(which))
            yield

    def step_ema(self, decay: float) -> None:
        for adapter in self.each.values():
            adapter.step_ema(decay)

    def save(self, folder: Path) -> None:
        for name, place in self.folders(folder).items():
            self.each[name].save(place)

    def load(self, folder: Path) -> None:
        for name, place in self.folders(folder).items():
            self.each[name].load(place)


def check_here(model: nn.Module) -> None:
    """Raises UsageError where weights are on "meta", as accelerate's cpu_offload leaves them."""
    absent = next((name for name, parameter in model.named_parameters() if parameter.is_meta), None)
    if absent is not None:
        raise UsageError(
            f"the weights of {absent} are on 'meta', where an adapter gets no gradient; load the model without a "
            f"device_map or cpu_offload, and set policy.offload"
        )


def _check_alone(model: nn.Module) -> None:
    """Raises UsageError after diffusers' enable_parallelism, under which outputs are whole and gradients are not: each
    rank has those of its part of the sequence, or of the weights, and ranks here have samples of their own besides."""
    if getattr(model, "_parallel_config", None) is not None:
        raise UsageError(
            f"{type(model).__name__} is computed by several ranks together (enable_parallelism), each of which then "
            f"has a part of its gradient; load it without, and set train.backend=fsdp2 to split its weights"
        )
