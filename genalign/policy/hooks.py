"""What is exchanged on a pipeline's parts for the time of a run, and put back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within the context the object, or the class, has this attribute, whatever its class or its base says."""
    kind: Any = type if isinstance(owner, type) else object
    before = owner.__dict__.get(name)
    kind.__setattr__(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            kind.__delattr__(owner, name)
        else:
            kind.__setattr__(owner, name, before)


@contextmanager
def lasting_weights(autoencoder: torch.nn.Module, bring: Callable[[torch.nn.Module], None]) -> Iterator[None]:
    """Within the context decode() computes with parameters that share their storage with the module's own, so that
    backward finds them as they were: pipelines decode in float32 and cast back to half precision at once.

    bring: sees that the module is where it computes."""
    real = autoencoder.decode

    @functools.wraps(real)  # type: ignore[arg-type]
    def decode(*args: Any, **kwargs: Any) -> Any:
        bring(autoencoder)
        own = [(module, dict(module._parameters)) for module in autoencoder.modules()]
        for module, parameters in own:
            for name, parameter in parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(parameter.data, requires_grad=False)
        try:
            return real(*args, **kwargs)  # type: ignore[operator]
        finally:
            for module, parameters in own:
                module._parameters.update(parameters)

    if next(autoencoder.parameters()).dtype.itemsize < 4:
        with attribute(autoencoder, "decode", decode):
            yield
    else:
        yield


def advance(scheduler: Any, timestep: Any) -> None:
    """What a scheduler's own step does to its place in the grid: its scale_noise reads it (in-painting)."""
    if not hasattr(scheduler, "_init_step_index"):
        return
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    scheduler._step_index += 1


def named(step: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a scheduler's step by their names, whatever order its class has them in. step: of the class."""
    names = [name for name in inspect.signature(step).parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def place_of(scheduler: Any, timestep: Any) -> int:
    """Which of the scheduler's times this is; the first of equal ones."""
    matching = (scheduler.timesteps.cpu() == torch.as_tensor(timestep).flatten()[0].cpu()).nonzero()
    return int(matching[0]) if len(matching) else 0
