"""`python -m genalign.cli.win_rates RUN...`: by which of many rewards a run's samples beat the base's, and how surely.

The table of DRAGON (arXiv 2504.15217, section 5): runs by rewards, and each run by the reward that it was trained on.
What a run's samples scored stands in RUN/win-rates.json; interrupted work goes on from there, and a run is scored again
when its adapter, a reward or the evaluation's prompts are others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genalign.cli.sample import device
from genalign.evaluation.intervals import exact_win_rate
from genalign.files.atomic import replace_file
from genalign.reward import Runner, build_reward
from genalign.run.build import Built
from genalign.run.folder import load_run
from genalign.types import Prompt, Reward, UsageError, Weights, sample_seed

KEPT = "win-rates.json"
BLOCK = 32  # prompts; a reward that looks at a set has one value of each block of them
TARGET = "its own reward"
Values = dict[str, list[float | None]]  # reward -> its value of each prompt, or of each block; None: it says nothing


def measured(run: Path, rewards: Mapping[str, Reward], others: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """{"digest", "base", "before": Values, "after": Values} of a run, read from its folder or made and kept there.

    others: what was measured of runs; where the base drew and scored the same, its values are theirs.

    Raises:
        UsageError: not a run folder, or a recipe without a reward or an evaluation.
    """
    built = load_run(run, device())
    settings, prompts = built.recipe.eval, built.eval_prompts
    if settings is None or prompts is None or built.reward is None:
        raise UsageError(f"the recipe of {run} has no reward or no key 'eval', by which runs are compared; add it")
    chosen = list(prompts)[: settings.count]
    every = {name: Runner(reward, max_failure=1.0) for name, reward in {**rewards, TARGET: built.reward}.items()}
    drawn = [built.recipe.policy.model, settings.guidance[0], settings.steps, settings.seeds[0], BLOCK]
    asked = [[prompt.text, json.dumps(dict(prompt.facts), sort_keys=True, default=str)] for prompt in chosen]
    base = _digest(drawn, asked, {name: reward.version for name, reward in every.items()})
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    digest = _digest(base, hashlib.sha256(weights).hexdigest())
    path = run / KEPT
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kept.get("digest") == digest:
        return kept
    before = next((other["before"] for other in others if other["base"] == base), None)
    before = before or scored(built, "reference", chosen, every)
    found = {"digest": digest, "base": base, "before": before, "after": scored(built, "policy", chosen, every)}
    replace_file(path, json.dumps(found).encode())
    return found


def scored(built: Built, which: Weights, prompts: Sequence[Prompt], rewards: Mapping[str, Reward]) -> Values:
    """One sample a prompt, drawn once and scored by every reward, at the first seed and guidance scale of `eval`."""
    settings = built.recipe.eval
    assert settings is not None
    policy = built.policy
    found: Values = {name: [] for name in rewards}
    with torch.no_grad(), policy.weights(which):
        for at in range(0, len(prompts), BLOCK):
            part = prompts[at : at + BLOCK]
            seeds = [sample_seed(settings.seeds[0], prompt.uid, 0) for prompt in part]
            scale = settings.guidance[0] if policy.guided else None
            media = policy.generate(part, seeds, guidance=scale, steps=settings.steps if policy.guided else None)
            group = torch.tensor([prompt.uid for prompt in part])
            for name, reward in rewards.items():
                scores = reward(part, media, group)
                total = torch.where(scores.total_valid, scores.total.double(), torch.nan).cpu()
                if reward.looks_at == "batch":  # the mean of a set's credits is its measure
                    total = total.nanmean()[None] if len(part) == BLOCK else total[:0]
                found[name] += [value if isfinite(value) else None for value in total.tolist()]
    return found


def table(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: each run by its own reward, with exact intervals; the mean of that; and all runs by all rewards."""
    lines = ["| run | by its own reward | of untied | 95% Clopper-Pearson | p, one-sided |", "|---|---|---|---|---|"]
    rates, targets = {}, []
    for name, run in runs.items():
        won = {reward: _won(run, reward) for reward in run["before"]}
        rates[name] = won
        own = won[TARGET]
        if own is None:
            lines.append(f"| {name} | - | 0 | - | - |")
            continue
        targets.append(own["rate"])
        low, high = own["ci95"]
        lines.append(f"| {name} | {own['rate']:.1%} | {own['untied']} | {low:.1%} to {high:.1%} | {own['p']:.2g} |")
    if targets:
        lines.append(f"\nMean over the runs' own rewards: {np.mean(targets):.2%} of {len(targets)} runs.")
    rewards = list(dict.fromkeys(reward for won in rates.values() for reward in won if reward != TARGET))
    lines += ["", f"| run | {' | '.join(rewards)} | better by |", "|---" * (len(rewards) + 2) + "|"]
    for name, won in rates.items():
        row = [won.get(reward) for reward in rewards]
        surely = sum(cell is not None and cell["ci95"][0] > 0.5 for cell in row)
        cells = " | ".join("-" if cell is None else f"{cell['rate']:.0%}" for cell in row)
        lines.append(f"| {name} | {cells} | {surely} of {len(rewards)} |")
    return "\n".join(lines) + "\n"


def _won(run: Mapping[str, Any], reward: str) -> dict[str, Any] | None:
    return exact_win_rate(*(np.array(run[when][reward], np.float64) for when in ("before", "after")))


def _digest(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m genalign.cli.win_rates", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that genalign train wrote")
    parser.add_argument("--rewards", default="music-twenty.yaml", help="a reward file whose sum has the rewards")
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="where the table is written, besides the console")
    asked = parser.parse_args(arguments)
    reward = build_reward(asked.rewards, Path())
    parts = getattr(reward, "parts", [reward])
    found: dict[str, dict[str, Any]] = {}
    for run in asked.runs:
        found[run.name] = measured(run, {part.name: part for part in parts}, list(found.values()))
        print(f"{run}: {KEPT} is written", flush=True)
    text = table(found)
    print(text)
    if asked.out is not None:
        replace_file(asked.out, text.encode())


if __name__ == "__main__":
    main()
