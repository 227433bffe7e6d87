"""What rules about one sample share, that need no model and no prompt: a number for it, or nothing to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genalign.reward.base import Scope, Stateless, digest
from genalign.reward.scores import all_abstained, readable_rows
from genalign.types import Media, Prompt, Scores


class Measure(Stateless):
    """Scores each row by itself, and abstains from a batch without the medium that it needs. settings: what changes its
    values."""

    looks_at: Scope = "sample"
    differentiable = False
    settings: tuple[Any, ...] = ()

    def __init__(self, name: str) -> None:
        self.name, self.aspects = name, (name,)

    @property
    def version(self) -> str:
        return digest(type(self).__name__, self.name, *self.settings)

    def score_of(self, media: Media, row: int) -> float | None:
        """The row's score, or None where the rule says nothing of it."""
        raise NotImplementedError

    def short(self, media: Media, row: int) -> str | None:
        """A sentence where the row is too short to be measured."""
        raise NotImplementedError

    def faults(self, prompts: Sequence[Prompt], media: Media) -> list[str | None]:
        faults = super().faults(prompts, media)
        if self.needs <= set(media):
            faults = [fault or self.short(media, row) for row, fault in enumerate(faults)]
        return faults

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        if not self.needs <= set(media):
            return all_abstained(self, len(prompts))
        found = [self.score_of(media, row) for row in range(len(prompts))]
        values = torch.tensor([0.0 if score is None else score for score in found])
        valid = torch.tensor([score is not None for score in found])
        none = torch.zeros_like(valid)
        return Scores(self.aspects, values[:, None], valid[:, None], none[:, None], values, valid, torch.ones(1))
