"""What every policy of one network and one adapter does with its weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genalign.policy.adapter import Adapter
from genalign.policy.archive import weights_digest
from genalign.types import UsageError, Weights


class Adapted:
    """The part of a Policy that its adapter answers; `model` is the network that holds it."""

    model: Any
    adapter: Adapter

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def weights(self, which: Weights) -> AbstractContextManager[None]:
        return self.adapter.weights(which)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.adapter.named_trainable().values())}]

    def named_trainable(self) -> dict[str, nn.Parameter]:
        return self.adapter.named_trainable()

    def step_ema(self, decay: float) -> None:
        self.adapter.step_ema(decay)

    def save_adapter(self, folder: Any) -> None:
        self.adapter.save(Path(folder))

    def load_adapter(self, folder: Any) -> None:
        self.adapter.load(Path(folder))

    @cached_property
    def _model_digest(self) -> str:
        return weights_digest([self.model], self.adapter.named_trainable().values())


def language_part(model: Any) -> str:
    """The name of the part of a vision-language model that writes: what adapters are anchored at.

    Raises:
        UsageError: none is known.
    """
    decoder = model.get_decoder()
    names = [name for name, module in model.named_modules() if module is decoder and name]
    names += [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ("language_model", "text_model")]
    names += ["model"] if isinstance(getattr(model, "model", None), nn.Module) else []
    if not names:
        raise UsageError(f"{type(model).__name__} has no part that is known to write, to be adapted")
    return names[0]
