"""`genalign lab build base-rows`: the scores of unchanged shipped models, as data that evaluations take up.

A recipe whose rows are there evaluates its tuned model only. They are made again when a shipped model, a reward, the
judge or a recipe's `eval` changes; until then such a recipe draws its base as any other does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genalign.cli.sample import device
from genalign.evaluation.base_rows import room, write_rows
from genalign.evaluation.trial import Trial, metrics_of, trial_of
from genalign.files.shipped import shipped_models, shipped_recipes
from genalign.run.build import Built, build
from genalign.run.recipe import load_recipe
from genalign.types import Reward


def build_base_rows(out: Path | None = None, recipes: Sequence[str] = ()) -> list[Path]:
    """Write a file for each way in which the evaluations of `recipes` (default: all that are shipped) draw a base.

    out: the folder; default: assets/base-rows. Files of other drawings in it are removed. Returns the files written.
    """
    out, models = out or room(), shipped_models()
    drawings: dict[str, list[Built]] = {}
    for name in recipes or shipped_recipes():
        recipe = load_recipe(name)
        if recipe.eval is not None and recipe.policy.model in models:
            built = build(recipe, device())
            if built.drawing is not None:
                drawings.setdefault(built.drawing, []).append(built)
    written = []
    for digest, alike in drawings.items():
        rewards: dict[tuple[str, str], Reward] = {}
        for built in alike:
            for reward in [*built.eval_rewards, *built.held_out]:
                rewards.setdefault((reward.name, reward.version), reward)
        model = alike[0].recipe.policy.model
        drawn = [_drawn(alike[0], part) for part in apart(list(rewards.values()))]
        written.append(write_rows(out, model, digest, drawn))
        print(f"{written[-1]}: {', '.join(sorted(name for name, _ in rewards))}", flush=True)
    for path in set(out.glob("*.json")) - set(written):
        path.unlink()
    return written


def _drawn(built: Built, rewards: Sequence[Reward]) -> tuple[Trial, np.ndarray]:
    assert built.eval_prompts is not None
    assert built.recipe.eval is not None
    names = [name for reward in rewards for name in metrics_of(reward)]
    trial = trial_of(built.policy, list(built.eval_prompts), rewards, names, built.recipe.eval)
    return trial, trial.sweep("reference")


def apart(rewards: Sequence[Reward]) -> list[list[Reward]]:
    """The rewards in as few parts as the order allows, no two of a part with one metric's name.

    Those that look at the whole batch stand in parts of their own, so that the others score micro-batches as any
    evaluation does.
    """
    parts: list[list[Reward]] = []
    for reward in rewards:
        for part in parts:
            taken = {name for other in part for name in metrics_of(other)}
            alike = (part[0].looks_at == "batch") == (reward.looks_at == "batch")
            if alike and not taken & set(metrics_of(reward)):
                part.append(reward)
                break
        else:
            parts.append([reward])
    return parts
