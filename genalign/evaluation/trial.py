"""One trial of a policy: drawn at every guidance scale with the same seeds, and scored by every reward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genalign.evaluation.settings import EvalSettings
from genalign.files.atomic import replace_file
from genalign.ranks import all_sum, gather, rank, world
from genalign.types import Media, Prompt, Reward, UsageError, Weights, sample_seed


class Drawing(Protocol):
    """What an evaluation needs of a policy: plain samples, under either weights."""

    @property
    def guided(self) -> bool: ...

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media: ...

    def weights(self, which: Weights) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Trial:
    """How base and tuned policy are both sampled and scored. Values are (G, N, J, K): scale, prompt, seed, metric.

    They are float64; NaN where a reward abstains and inf where it failed, so that neither can pass for a number.
    """

    policy: Drawing
    prompts: tuple[Prompt, ...]
    rewards: tuple[Reward, ...]
    names: tuple[str, ...]
    scales: tuple[float | None, ...]
    steps: int | None
    seeds: tuple[int, ...]
    batch_size: int

    def base(self, cache: Path | None) -> np.ndarray:
        """The base's values, from the cache if all that made it is the same.

        Raises:
            UsageError: the cache is a file of another kind.
        """
        if cache is None:
            return self.sweep("reference")
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save

        digest, stored = self._digest(), None
        if cache.is_file():
            try:
                with safe_open(str(cache), framework="pt") as file:
                    kept, names = (file.metadata() or {}).get("digest"), list(file.keys())
                    stored = file.get_tensor("values").numpy() if kept == digest else None
            except SafetensorError as error:
                raise UsageError(f"eval.base_cache {cache} is no safetensors file ({error}); name another") from error
            if kept is None or names != ["values"]:  # somebody's weights are not to be written over
                raise UsageError(f"eval.base_cache {cache} holds something else than scores; name another file")
        missing = float(all_sum(torch.tensor([float(stored is None)])))  # all ranks sweep, or none does
        if stored is not None and not missing:
            return stored
        values = self.sweep("reference")
        if rank() == 0:
            cache.parent.mkdir(parents=True, exist_ok=True)
            replace_file(cache, save({"values": torch.from_numpy(values).contiguous()}, metadata={"digest": digest}))
        return values

    def sweep(self, which: Weights) -> np.ndarray:
        from tqdm import tqdm

        mine = list(range(rank(), len(self.prompts), world()))
        whole = any(reward.looks_at == "batch" for reward in self.rewards)  # one call a scale
        size = max(1, len(mine)) if whole else self.batch_size
        order = gather(torch.tensor(mine, dtype=torch.long)).argsort()
        table = []
        label = "base" if which == "reference" else "tuned"
        bar = tqdm(total=len(self.scales) * len(mine), desc=f"eval {label}", disable=rank() != 0, leave=False)
        with bar, self.policy.weights(which):
            for scale in self.scales:
                rows = torch.zeros(len(mine), len(self.seeds), len(self.names), dtype=torch.float64)
                for start in range(0, len(mine), size):
                    part = [self.prompts[i] for i in mine[start : start + size]]
                    rows[start : start + len(part)] = self._score(part, scale)
                    bar.update(len(part))
                table.append(gather(rows)[order])
        return torch.stack(table).numpy()

    def rows(self, values: np.ndarray, best: int) -> dict[str, Any]:
        """One moment's part of `sweep`: means over prompts at each scale, and the samples that failed."""
        return {
            "best": self.scales[best],
            "metrics": {name: means_of(values[..., k]) for k, name in enumerate(self.names)},
            "failed": {name: int(np.isinf(values[..., k]).sum()) for k, name in enumerate(self.names)},
        }

    def _score(self, prompts: Sequence[Prompt], scale: float | None) -> Tensor:
        repeated = [prompt for prompt in prompts for _ in self.seeds]
        seeds = [sample_seed(seed, prompt.uid, 0) for prompt in prompts for seed in self.seeds]
        media = self.policy.generate(repeated, seeds, guidance=scale, steps=self.steps)
        group = torch.tensor([prompt.uid for prompt in repeated], dtype=torch.long)
        columns: dict[str, Tensor] = {}
        for reward in self.rewards:
            scores = reward(repeated, media, group)
            values = scores.values.detach().double().cpu()  # (P*J, K)
            values[~scores.valid.cpu()] = float("nan")
            values[scores.failed.cpu()] = float("inf")
            total = scores.total.detach().double().cpu()  # (P*J,)
            total[~scores.total_valid.cpu()] = float("nan")
            columns[metric_name(reward, "total")] = total
            columns |= {metric_name(reward, aspect): values[:, k] for k, aspect in enumerate(scores.names)}
        table = torch.stack([columns[name] for name in self.names], dim=1)  # (P*J, K)
        return table.reshape(len(prompts), len(self.seeds), len(self.names))

    def _digest(self) -> str:
        """A hash of all that the base's values depend on; the model is known by what it draws for the first prompt."""
        first = self.prompts[0]
        with self.policy.weights("reference"):
            seed = sample_seed(self.seeds[0], first.uid, 0)
            media = self.policy.generate([first], [seed], guidance=self.scales[0], steps=self.steps)
        drawn: list[Any] = []
        for _, track in sorted(media.items()):
            drawn += [row if isinstance(row, str) else (row.float() * 255).round().int().tolist() for row in track]
        identity = {
            "prompts": [[p.uid, p.text, json.dumps(dict(p.facts), sort_keys=True, default=str)] for p in self.prompts],
            "rewards": [[reward.name, reward.version] for reward in self.rewards],
            "cells": [self.names, self.scales, self.steps, self.seeds],
            "drawn": drawn,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def trial_of(
    policy: Drawing, prompts: Sequence[Prompt], rewards: Sequence[Reward], names: Sequence[str], settings: EvalSettings
) -> Trial:
    """The trial that an evaluation with these settings makes; scales and steps only where sampling has guidance."""
    return Trial(
        policy=policy,
        prompts=tuple(prompts)[: settings.count],
        rewards=tuple(rewards),
        names=tuple(names),
        scales=tuple(settings.guidance) if policy.guided else (None,),
        steps=settings.steps if policy.guided else None,
        seeds=tuple(settings.seeds),
        batch_size=settings.batch_size,
    )


def metric_name(reward: Reward, aspect: str) -> str:
    return reward.name if aspect == reward.name else f"{reward.name}/{aspect}"


def metrics_of(reward: Reward) -> list[str]:
    """The names of all that a reward says: its aspects and, where these are several, their total, last."""
    total = ["total"] if len(reward.aspects) > 1 and "total" not in reward.aspects else []
    return [metric_name(reward, aspect) for aspect in (*reward.aspects, *total)]


def by_prompt(values: np.ndarray) -> np.ndarray:
    """(N, J) -> (N,): mean over the valid seeds, NaN where none is."""
    valid = np.isfinite(values)
    counts = valid.sum(axis=1)
    return np.where(counts > 0, np.where(valid, values, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def means_of(values: np.ndarray) -> list[float | None]:
    """(G, N, J) -> the mean over prompts at each scale, None where no prompt counts."""
    means = [by_prompt(cell) for cell in values]
    return [float(np.nanmean(mean)) if np.isfinite(mean).any() else None for mean in means]
