"""Before against after: base and tuned policy on the same prompts and seeds, each at its own best guidance scale."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genalign.evaluation.base_rows import read_rows
from genalign.evaluation.intervals import compare, win_rate
from genalign.evaluation.results import HEADINGS, rows
from genalign.evaluation.settings import EvalSettings
from genalign.evaluation.summary import by_word
from genalign.evaluation.trial import Drawing, Trial, by_prompt, means_of, metric_name, metrics_of, trial_of
from genalign.files.atomic import replace_file
from genalign.ranks import all_sum, rank
from genalign.types import Prompt, Reward, UsageError, Weights


def evaluate(
    policy: Drawing,
    prompts: Sequence[Prompt],
    rewards: Sequence[Reward],
    held_out: Sequence[Reward],
    settings: EvalSettings,
    out: Path,
    tuned: Weights = "policy",
    training: Sequence[Prompt] = (),
    drawing: str | None = None,
) -> dict[str, Any]:
    """Measure the base ("reference" weights) and the tuned policy, write `out`/eval.json and return what it holds.

    A metric is called `<reward name>/<aspect>` (an aspect named like its reward is called so once); a training reward
    of several aspects also has `<reward name>/total`. It counts the prompts on which it is valid both before and after,
    each by its mean over the seeds. `delta` has a 95% interval from a paired bootstrap over those prompts, as has
    `wins`, the share of them that the tuned policy wins, half of the ties included; `sweep`
    holds both rows over all guidance scales, there over the prompts valid in that cell, and how many samples failed to
    be scored; `judged` says what the headline is and how its kinds changed (see `summary`). The best scale is chosen by
    the first judge's first aspect, without a judge by the first reward. Ranks share the prompts; rank 0 writes.

    `training`: the prompts that were trained on; the headlines of the first reward and of the first judge on
    `settings.training_prompts` of them are metrics of their own, `... on N training prompts`. `tuned`: "ema" where the
    run kept an average. `drawing`: the digest under which the base's rows may be shipped; where they are, with every
    reward, the base is not drawn again. `settings.base_cache` is written when absent, or when the model, prompts,
    seeds, scales or rewards are others.

    Raises:
        UsageError: no prompts, no reward at all, or two metrics of one name.
    """
    chosen = tuple(prompts)[: settings.count]
    if not chosen:
        raise UsageError("there is nothing to evaluate: the eval prompts file holds no prompt")
    named = [metrics_of(reward) for reward in rewards]
    held = [metric_name(judge, aspect) for judge in held_out for aspect in judge.aspects]
    names = _distinct([name for of_reward in named for name in of_reward] + held)
    headline = names.index(held[0] if held else named[0][-1])
    trial = trial_of(policy, chosen, [*rewards, *held_out], names, settings)
    cache = None if settings.base_cache is None else Path(settings.base_cache)
    known = None if drawing is None else _known_base(trial, drawing)
    before = trial.base(cache) if known is None else known
    after = trial.sweep(tuned)
    low, high = (_best(values[..., headline]) for values in (before, after))
    seen = tuple(training)[: settings.training_prompts]
    headlines = {named[0][-1]: rewards[0]} if rewards else {}
    if held_out:
        headlines[held[0]] = held_out[0]
    metrics: dict[str, Any] = {}
    for k, name in enumerate(names):
        pair = by_prompt(before[low, ..., k]), by_prompt(after[high, ..., k])
        compared, won = compare(*pair), win_rate(*pair)
        if compared is not None and won is not None:  # a metric that is never valid is left out
            metrics[name] = {**compared, **won, "held_out": name in held}
    leader = held_out[0] if held_out else rewards[0]
    kinds = _kinds(trial, leader, names[headline], before[low], after[high])
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
        "judged": {"by": _unit(leader, before[..., headline], after[..., headline]), "aspects": kinds},
    }
    if rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / "eval.json", json.dumps(result, indent=2).encode())
    return result


def _kinds(trial: Trial, reward: Reward, headline: str, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Aspect of the leading reward -> its metric, and how each word of its fact changed; before, after: (N, J, K)."""
    found: dict[str, Any] = {}
    for aspect in reward.aspects:
        name = metric_name(reward, aspect)
        if name != headline:
            k = trial.names.index(name)
            words = by_word(trial.prompts, aspect, by_prompt(before[..., k]), by_prompt(after[..., k]))
            found[aspect] = {"metric": name, "words": words}
    return found


def _known_base(trial: Trial, drawing: str) -> np.ndarray | None:
    """The base's values where they are shipped; all ranks take them, or none does."""
    found = read_rows(drawing, trial)
    if float(all_sum(torch.tensor([float(found is None)]))):
        return None
    assert found is not None
    if rank() == 0:
        print(f"the base's scores on {len(trial.prompts)} prompts are known: {found[0]}", file=sys.stderr)
    return found[1]


def _unit(reward: Reward, *values: np.ndarray) -> str:
    """What a headline is: `follows` or `passes`, for answers of yes or no with or without the prompt; else `value`."""
    finite = np.concatenate([each[np.isfinite(each)] for each in values])
    if not np.isin(finite, (0.0, 1.0)).all():
        return "value"
    return "follows" if any(name == "prompt" or name.startswith("facts.") for name in reward.needs) else "passes"


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


def print_table(result: Mapping[str, Any], before: str = "") -> None:
    """The table of before and after on the console, held-out rewards first; before: what its title begins with."""
    from rich.console import Console
    from rich.table import Table

    sweep = result["sweep"]
    title = f"{before}{result['prompts']} prompts, seeds {', '.join(map(str, result['seeds']))}"
    if len(sweep["guidance"]) > 1:
        title += f"; best guidance {sweep['before']['best']:g} before, {sweep['after']['best']:g} after"
    elif sweep["guidance"] != [None]:
        title += f"; guidance {sweep['guidance'][0]:g}"
    table = Table(HEADINGS[0], title=title)
    for heading in HEADINGS[1:]:
        table.add_column(heading, justify="right")
    for row in rows(result):
        table.add_row(*row.cells)
    Console().print(table)


def _distinct(names: list[str]) -> list[str]:
    if not names:
        raise UsageError("there is nothing to evaluate with: give eval.held_out or eval.rewards")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(
            f"two rewards of the evaluation both report {twice[0]!r}; drop one of them from eval.rewards or from "
            f"eval.held_out"
        )
    return names


def _best(values: np.ndarray) -> int:
    means = [float("-inf") if mean is None else mean for mean in means_of(values)]
    return means.index(max(means))
