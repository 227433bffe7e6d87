"""What is not on the device is poisoned, so that whoever reads it is found out on a machine that has a CPU alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.policy.residence import PLAIN, Residence, modules_outside

POISON = float("nan")


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a parameter of a network that is away is not a number, and takes the bytes of one number."""
    real: dict[int, Tensor] = {}
    held: list[Tensor] = []

    def away(self: Residence, data: Tensor) -> Tensor:
        if not data.is_floating_point():
            return data
        blank = torch.full((), POISON, dtype=data.dtype).expand(data.shape)
        real[blank.data_ptr()] = data
        held.append(blank)
        return blank

    def begin(self: Residence, *args: Any, **kwargs: Any) -> None:
        started(self, *args, **kwargs)
        apart = {id(part) for inner in self.inner.values() for part in inner.units.values()}
        for unit in self.units.values():
            for module in modules_outside(unit, apart):
                held = [parameter for parameter in module._parameters.values() if parameter is not None]
                if any(type(parameter) not in PLAIN for parameter in held if not parameter.requires_grad):
                    continue  # quantised: it moves as a whole, by the library's own way
                for parameter in held:
                    if parameter.data_ptr() not in real:
                        parameter.data = away(self, parameter.data)

    started = Residence.__init__
    monkeypatch.setattr(Residence, "__init__", begin)
    monkeypatch.setattr(Residence, "away", away)
    monkeypatch.setattr(Residence, "here", lambda self, data: real.get(data.data_ptr(), data))
