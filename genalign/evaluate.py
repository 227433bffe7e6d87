"""Before against after: base and tuned policy on the same prompts and seeds, each at its own best guidance scale."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from genalign.ranks import all_sum, gather, rank, world
from genalign.types import Media, Prompt, Reward, UsageError, Weights, sample_seed

BOOTSTRAP_DRAWS = 2000


class EvalSettings(BaseModel):
    """What `eval:` of a recipe may say."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompts: str
    """File of held-out prompts (.jsonl or .txt), relative to the recipe, then to the shipped assets."""
    count: int = Field(default=512, gt=0)
    """How many prompts: the first ones of the file."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Sampling seeds: each prompt is drawn once a seed, with the same noise before and after."""
    guidance: list[float] = Field(default=[1.0, 2.0, 3.0, 5.0], min_length=1)
    """Guidance scales; base and tuned model are each reported at their best one. Ignored for language models."""
    steps: int = Field(default=10, gt=0)
    """Denoising steps, equal before and after. Ignored for language models."""
    held_out: str | dict[str, Any] | None = None
    """The judge that is never optimised: a reward spec. Its first aspect chooses the best guidance scale."""
    rewards: list[str | dict[str, Any]] = []
    """Further reward specs to report beside the training reward and the judge."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts sampled and scored at a time; all of them where a reward looks at the whole batch."""
    base_cache: str | None = None
    """A .safetensors file that keeps the base's scores from run to run, relative to the working directory."""


class Drawing(Protocol):
    """What an evaluation asks of a policy: plain samples, under either weights."""

    modalities: frozenset[str]

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media: ...

    def weights(self, which: Weights) -> AbstractContextManager[None]: ...


def evaluate(
    policy: Drawing,
    prompts: Sequence[Prompt],
    rewards: Sequence[Reward],
    held_out: Reward | None,
    settings: EvalSettings,
    out: Path,
    tuned: Weights = "policy",
) -> dict[str, Any]:
    """Measure the base ("reference" weights) and the tuned policy, write `out`/eval.json and return what it holds.

    A metric is called `<reward name>/<aspect>` (an aspect named like its reward is called so once); a training reward
    of several aspects also has `<reward name>/total`. It counts the prompts on which it is valid both before and after,
    each by its mean over the seeds. `delta` has a 95% interval from a paired bootstrap over those prompts; `sweep`
    holds both rows over all guidance scales, there over the prompts valid in that cell, and how many samples failed to
    be scored. The best scale is chosen by the judge's first aspect, without a judge by the first reward. Ranks share
    the prompts; rank 0 writes.

    `tuned`: "ema" where the run kept an average. `settings.base_cache` is written when absent, or when the model,
    prompts, seeds, scales or rewards are others.

    Raises:
        UsageError: no prompts, no reward at all, or two metrics of one name.
    """
    chosen = tuple(prompts)[: settings.count]
    if not chosen:
        raise UsageError("there is nothing to evaluate: the eval prompts file holds no prompt")
    named = [[_metric(reward, aspect) for aspect in (*reward.aspects, *_total(reward))] for reward in rewards]
    held = [_metric(held_out, aspect) for aspect in held_out.aspects] if held_out is not None else []
    names = _distinct([name for of_reward in named for name in of_reward] + held)
    headline = names.index(held[0] if held else named[0][-1])
    sampled = "image" in policy.modalities
    trial = _Trial(
        policy=policy,
        prompts=chosen,
        rewards=(*rewards, *([held_out] if held_out is not None else [])),
        names=tuple(names),
        scales=tuple(settings.guidance) if sampled else (None,),
        steps=settings.steps if sampled else None,
        seeds=tuple(settings.seeds),
        batch_size=settings.batch_size,
    )
    cache = None if settings.base_cache is None else Path(settings.base_cache)
    before, after = trial.base(cache), trial.sweep(tuned)
    low, high = (_best(values[..., headline]) for values in (before, after))
    result = {
        "prompts": len(chosen),
        "seeds": list(settings.seeds),
        "metrics": {
            name: {**compared, "held_out": name in held}
            for k, name in enumerate(names)
            if (compared := compare(_by_prompt(before[low, ..., k]), _by_prompt(after[high, ..., k])))
        },
        "sweep": {
            "guidance": list(trial.scales),
            "steps": trial.steps,
            "headline": names[headline],
            "weights": tuned,
            "before": trial.rows(before, low),
            "after": trial.rows(after, high),
        },
    }
    if rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        _replace(out / "eval.json", json.dumps(result, indent=2).encode())
    return result


def compare(before: np.ndarray, after: np.ndarray, draws: int = BOOTSTRAP_DRAWS) -> dict[str, Any] | None:
    """Means of paired per-prompt values (N,), their difference and its 95% percentile interval; None without a pair.

    NaN marks a prompt that a metric says nothing of. The bootstrap resamples prompts, so that a prompt's luck before
    and after stays together; its random state is fixed, so that one result has one interval.
    """
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return None
    delta = after[both] - before[both]
    picks = np.random.default_rng(0).integers(0, len(delta), size=(draws, len(delta)))  # (draws, N)
    low, high = np.percentile(delta[picks].mean(axis=1), [2.5, 97.5])
    return {
        "before": float(before[both].mean()),
        "after": float(after[both].mean()),
        "delta": float(delta.mean()),
        "ci95": [float(low), float(high)],
    }


def print_table(result: dict[str, Any]) -> None:
    """The before/after table on the console, the judge's rows first."""
    from rich.console import Console
    from rich.table import Table

    sweep = result["sweep"]
    title = f"{result['prompts']} prompts, seeds {', '.join(map(str, result['seeds']))}"
    if sweep["guidance"] != [None]:
        title += f"; best guidance {sweep['before']['best']:g} before, {sweep['after']['best']:g} after"
    table = Table("metric", title=title)
    for heading in ("before", "after", "delta", "95% interval"):
        table.add_column(heading, justify="right")
    for name, row in sorted(result["metrics"].items(), key=lambda item: not item[1]["held_out"]):
        table.add_row(
            f"{name} (held-out)" if row["held_out"] else name,
            f"{row['before']:.4f}",
            f"{row['after']:.4f}",
            f"{row['delta']:+.4f}",
            "{:+.4f} to {:+.4f}".format(*row["ci95"]),
        )
    Console().print(table)


@dataclass(frozen=True)
class _Trial:
    """What base and tuned policy are both put through. Values are (G, N, J, K): scale, prompt, seed, metric.

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
        """The base's values, from the cache if all that made it is the same."""
        if cache is None:
            return self.sweep("reference")
        from safetensors import safe_open
        from safetensors.torch import save

        digest, stored = self._digest(), None
        if cache.is_file():
            with safe_open(str(cache), framework="pt") as file:
                if (file.metadata() or {}).get("digest") == digest:
                    stored = file.get_tensor("values").numpy()
        missing = float(all_sum(torch.tensor([float(stored is None)])))  # all ranks sweep, or none does
        if stored is not None and not missing:
            return stored
        values = self.sweep("reference")
        if rank() == 0:
            cache.parent.mkdir(parents=True, exist_ok=True)
            _replace(cache, save({"values": torch.from_numpy(values).contiguous()}, metadata={"digest": digest}))
        return values

    def sweep(self, which: Weights) -> np.ndarray:
        from tqdm import tqdm

        mine = list(range(rank(), len(self.prompts), world()))
        whole = any(reward.looks_at == "batch" for reward in self.rewards)  # a measure of the set: asked once a scale
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
            "metrics": {name: _row(values[..., k]) for k, name in enumerate(self.names)},
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
            columns[_metric(reward, "total")] = total
            columns |= {_metric(reward, aspect): values[:, k] for k, aspect in enumerate(scores.names)}
        table = torch.stack([columns[name] for name in self.names], dim=1)  # (P*J, K)
        return table.reshape(len(prompts), len(self.seeds), len(self.names))

    def _digest(self) -> str:
        """Names all that the base's values depend on; the model is known by what it draws for the first prompt."""
        first = self.prompts[0]
        with self.policy.weights("reference"):
            seed = sample_seed(self.seeds[0], first.uid, 0)
            media = self.policy.generate([first], [seed], guidance=self.scales[0], steps=self.steps)
        told = {
            "prompts": [[p.uid, p.text, json.dumps(dict(p.facts), sort_keys=True, default=str)] for p in self.prompts],
            "rewards": [[reward.name, reward.version] for reward in self.rewards],
            "cells": [self.names, self.scales, self.steps, self.seeds],
            "drawn": [
                row if isinstance(row, str) else (row.float() * 255).round().int().tolist()
                for _, track in sorted(media.items())
                for row in track.data
            ],
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _metric(reward: Reward, aspect: str) -> str:
    return reward.name if aspect == reward.name else f"{reward.name}/{aspect}"


def _total(reward: Reward) -> tuple[str, ...]:
    return ("total",) if len(reward.aspects) > 1 and "total" not in reward.aspects else ()


def _distinct(names: list[str]) -> list[str]:
    if not names:
        raise UsageError("there is nothing to evaluate with: give eval.held_out or eval.rewards")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"two rewards of the evaluation both report {twice[0]!r}; drop one of them from eval.rewards")
    return names


def _by_prompt(values: np.ndarray) -> np.ndarray:
    """(N, J) -> (N,): mean over the valid seeds, NaN where none is."""
    valid = np.isfinite(values)
    counts = valid.sum(axis=1)
    return np.where(counts > 0, np.where(valid, values, 0.0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def _row(values: np.ndarray) -> list[float | None]:
    """(G, N, J) -> the mean over prompts at each scale, None where no prompt counts."""
    means = [_by_prompt(cell) for cell in values]
    return [float(np.nanmean(mean)) if np.isfinite(mean).any() else None for mean in means]


def _best(values: np.ndarray) -> int:
    means = [float("-inf") if mean is None else mean for mean in _row(values)]
    return means.index(max(means))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
