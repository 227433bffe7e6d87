"""What the held-out judges of moving clips and of melodies share: a network writes down facts, which are checked."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from genalign.files.shipped import shipped
from genalign.lab.world import Facts
from genalign.reward.base import Scope, Stateless
from genalign.reward.scores import combine
from genalign.types import Media, Prompt, Scores, UsageError


class FactsJudge(Stateless):
    """all_facts and every kind of fact, each 1 or 0; an aspect abstains where the prompt does not state it. total is
    all_facts.

    part: what the lab calls it; its weights lie in assets/tiny-`part`.

    Raises:
        UsageError: its weights are missing.
    """

    part: ClassVar[str]
    aspects: tuple[str, ...]
    looks_at: Scope = "sample"

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder else shipped("assets", f"tiny-{self.part}")
        weights = self.folder / "model.safetensors"
        if not weights.exists():
            raise UsageError(f"the judge's weights {weights} are missing; make them: `genalign lab build {self.part}`")
        self._version = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]

    @property
    def version(self) -> str:
        return self._version

    def seen(self, prompts: Sequence[Prompt], media: Media) -> Sequence[Facts]:
        """What the network finds in each row."""
        raise NotImplementedError

    def checked(self, stated: Facts, seen: Facts) -> dict[str, bool | None]:
        """Truth by aspect, None where nothing is stated."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        found = self.seen(prompts, media)
        checked = [self.checked(prompt.facts, facts) for prompt, facts in zip(prompts, found, strict=True)]
        rows = [[row[aspect] for aspect in self.aspects] for row in checked]
        values = torch.tensor([[float(bool(value)) for value in row] for row in rows]).reshape(-1, len(self.aspects))
        valid = torch.tensor([[value is not None for value in row] for row in rows]).bool().reshape(values.shape)
        weights, failed = torch.tensor(self.weights), torch.zeros_like(valid)
        total, readable = combine(values, valid, failed, weights, None, "renormalise")
        return Scores(self.aspects, values, valid, failed, total, readable, weights)
