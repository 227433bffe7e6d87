"""Another adapter of the policy as a guide: how likely it finds each step, which says what the step is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from genalign.types import Policy, Trajectory


class Guide:
    """The adapter of an earlier run, such as one of DPO, read when it is first asked; the policy's own is untouched.

    folder: its `adapter/`, of the same model and `policy.lora`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[str, Tensor] | None = None

    @torch.no_grad()
    def score(self, policy: Policy, trajectory: Trajectory, rows: Sequence[int], steps: Sequence[int]) -> Tensor:
        """(R,S) log p_guide of recorded steps, as `Policy.replay` scores them."""
        with self._lent_to(policy):
            return policy.replay(trajectory, rows, steps).score

    @contextmanager
    def _lent_to(self, policy: Policy) -> Iterator[None]:
        own = policy.named_trainable()
        held = self._held = self._held or self._read(policy)
        before = {name: parameter.data for name, parameter in own.items()}
        try:
            for name, parameter in own.items():
                parameter.data = held[name]
            yield
        finally:
            for name, parameter in own.items():
                parameter.data = before[name]

    def _read(self, policy: Policy) -> dict[str, Tensor]:
        own = policy.named_trainable()
        before = {name: parameter.detach().clone() for name, parameter in own.items()}
        policy.load_adapter(self.folder)
        held = {name: parameter.detach().clone() for name, parameter in own.items()}
        for name, parameter in own.items():
            parameter.copy_(before[name])
        return held
