"""Before against after: base and tuned policy on the same prompts and seeds, each at its own best guidance scale."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from genalign.evaluation.results import HEADINGS, rows
from genalign.evaluation.trial import Drawing, Trial, by_prompt, means_of, metric_name
from genalign.files.atomic import replace_file
from genalign.ranks import rank
from genalign.types import Prompt, Reward, UsageError, Weights

BOOTSTRAP_DRAWS = 2000


class EvalSettings(BaseModel):
    """What `eval:` of a recipe may set."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompts: str
    """File of held-out prompts (.jsonl or .txt), relative to the recipe, then to the shipped assets."""
    count: int = Field(default=512, gt=0)
    """How many prompts: the first ones of the file."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Sampling seeds: each prompt is drawn once a seed, with the same noise before and after."""
    guidance: list[float] = Field(default=[1.0, 2.0, 3.0, 5.0], min_length=1)
    """Guidance scales; base and tuned model are each reported at their best one. Ignored where sampling
    has no guidance scale, as a language model's."""
    steps: int = Field(default=10, gt=0)
    """Denoising steps, equal before and after. Ignored where guidance is."""
    held_out: str | dict[str, Any] | None = None
    """The judge that is never optimised: a reward spec. Its first aspect chooses the best guidance scale."""
    rewards: list[str | dict[str, Any]] = []
    """Further reward specs to report beside the training reward and the judge."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts sampled and scored at a time; all of them where a reward looks at the whole batch."""
    training_prompts: int = Field(default=0, ge=0)
    """How many of data.prompts to score by training reward and judge as well, at the first scale: what was learnt."""
    base_cache: str | None = None
    """A .safetensors file that keeps the base's scores from run to run, relative to the working directory; those of
    training prompts stand beside it, as NAME-training.safetensors."""


def evaluate(
    policy: Drawing,
    prompts: Sequence[Prompt],
    rewards: Sequence[Reward],
    held_out: Reward | None,
    settings: EvalSettings,
    out: Path,
    tuned: Weights = "policy",
    training: Sequence[Prompt] = (),
) -> dict[str, Any]:
    """Measure the base ("reference" weights) and the tuned policy, write `out`/eval.json and return what it holds.

    A metric is called `<reward name>/<aspect>` (an aspect named like its reward is called so once); a training reward
    of several aspects also has `<reward name>/total`. It counts the prompts on which it is valid both before and after,
    each by its mean over the seeds. `delta` has a 95% interval from a paired bootstrap over those prompts; `sweep`
    holds both rows over all guidance scales, there over the prompts valid in that cell, and how many samples failed to
    be scored. The best scale is chosen by the judge's first aspect, without a judge by the first reward. Ranks share
    the prompts; rank 0 writes.

    `training`: the prompts that were trained on; the headlines of the first reward and of the judge on
    `settings.training_prompts` of them are metrics of their own, `... on N training prompts`. `tuned`: "ema" where the
    run kept an average. `settings.base_cache` is written when absent, or when the model, prompts, seeds, scales or
    rewards are others.

    Raises:
        UsageError: no prompts, no reward at all, or two metrics of one name.
    """
    chosen = tuple(prompts)[: settings.count]
    if not chosen:
        raise UsageError("there is nothing to evaluate: the eval prompts file holds no prompt")
    named = [_names(reward, (*reward.aspects, *_total(reward))) for reward in rewards]
    held = _names(held_out, held_out.aspects) if held_out is not None else []
    names = _distinct([name for of_reward in named for name in of_reward] + held)
    headline = names.index(held[0] if held else named[0][-1])
    trial = Trial(
        policy=policy,
        prompts=chosen,
        rewards=(*rewards, *([held_out] if held_out is not None else [])),
        names=tuple(names),
        scales=tuple(settings.guidance) if policy.guided else (None,),
        steps=settings.steps if policy.guided else None,
        seeds=tuple(settings.seeds),
        batch_size=settings.batch_size,
    )
    cache = None if settings.base_cache is None else Path(settings.base_cache)
    before, after = trial.base(cache), trial.sweep(tuned)
    low, high = (_best(values[..., headline]) for values in (before, after))
    seen = tuple(training)[: settings.training_prompts]
    headlines = {named[0][-1]: rewards[0]} if rewards else {}
    if held_out is not None:
        headlines[held[0]] = held_out
    metrics: dict[str, Any] = {}
    for k, name in enumerate(names):
        compared = compare(by_prompt(before[low, ..., k]), by_prompt(after[high, ..., k]))
        if compared is not None:  # a metric that is never valid is left out
            metrics[name] = {**compared, "held_out": name in held}
    if seen and rewards:
        metrics |= _on_training(trial, seen, headlines, tuned, cache)
    result = {
        "prompts": len(chosen),
        "seeds": list(settings.seeds),
        "metrics": metrics,
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
        replace_file(out / "eval.json", json.dumps(result, indent=2).encode())
    return result


def _on_training(
    trial: Trial, prompts: tuple[Prompt, ...], headlines: dict[str, Reward], tuned: Weights, cache: Path | None
) -> dict[str, Any]:
    """Before and after on `prompts` of each headline, by the reward it is a metric of, at the first guidance scale."""
    names, rewards = tuple(headlines), tuple(headlines.values())
    trial = replace(trial, prompts=prompts, rewards=rewards, names=names, scales=trial.scales[:1])
    base = trial.base(cache and cache.with_stem(f"{cache.stem}-training"))[0]
    values = trial.sweep(tuned)[0]  # (N, J, K)
    found: dict[str, Any] = {}
    for k, name in enumerate(names):
        compared = compare(by_prompt(base[..., k]), by_prompt(values[..., k]))
        if compared is not None:
            found[f"{name} on {len(prompts)} training prompts"] = {**compared, "held_out": k > 0}
    return found


def compare(before: np.ndarray, after: np.ndarray, draws: int = BOOTSTRAP_DRAWS) -> dict[str, Any] | None:
    """Means of paired per-prompt values (N,), their difference and its 95% percentile interval; None without a pair.

    NaN marks a prompt for which a metric has no value. The bootstrap resamples prompts, so that a prompt's luck before
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
    """The table of before and after on the console, held-out rewards first."""
    from rich.console import Console
    from rich.table import Table

    sweep = result["sweep"]
    title = f"{result['prompts']} prompts, seeds {', '.join(map(str, result['seeds']))}"
    if sweep["guidance"] != [None]:
        title += f"; best guidance {sweep['before']['best']:g} before, {sweep['after']['best']:g} after"
    table = Table(HEADINGS[0], title=title)
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right")
    for row in rows(result):
        table.add_row(*row.cells)
    Console().print(table)


def _names(reward: Reward, aspects: Sequence[str]) -> list[str]:
    return [metric_name(reward, aspect) for aspect in aspects]


def _total(reward: Reward) -> tuple[str, ...]:
    return ("total",) if len(reward.aspects) > 1 and "total" not in reward.aspects else ()


def _distinct(names: list[str]) -> list[str]:
    if not names:
        raise UsageError("there is nothing to evaluate with: give eval.held_out or eval.rewards")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"two rewards of the evaluation both report {twice[0]!r}; drop one of them from eval.rewards")
    return names


def _best(values: np.ndarray) -> int:
    means = [float("-inf") if mean is None else mean for mean in means_of(values)]
    return means.index(max(means))
