"""What every policy of one network and one adapter does with its weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genalign.policy.adapter import Adapter
from genalign.policy.archive import weights_digest
from genalign.policy.language.head import Head
from genalign.policy.language.saving import Saving
from genalign.types import UsageError, Weights


class Adapted:
    """The part of a Policy that its adapter answers; `model` is the network that holds it, `head` its last layer, and
    `memory` what its settings save."""

    model: Any
    adapter: Adapter
    head: Head
    memory: Saving

    @property
    def device(self) -> torch.device:
        return self.memory.device

    def saving(self) -> tuple[str, ...]:
        return self.memory.names

    def plainly(self) -> AbstractContextManager[None]:
        return self.memory.plainly()

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

    def shard(self, shard: Callable[[nn.Module], None]) -> None:
        self._model_digest  # noqa: B018 (cached, while the weights are here)
        self.head.check_split()
        shard(self.model)

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
