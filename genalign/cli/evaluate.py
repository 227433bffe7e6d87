"""A finished run measured anew: `evaluate_run` for a program, `print_evaluation` is `genalign eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genalign.cli.sample import device
from genalign.files.places import portable
from genalign.run.launch import RECIPE, load_run
from genalign.types import UsageError


def evaluate_run(run: str | Path, rewards: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate a finished run anew; its eval.json, report.html and model card are written again.

    rewards: further ones to measure; their files are relative to the working directory.

    Returns what eval.json holds: {"metrics": {name: {"before", "after", "delta", "ci95", "held_out"}}, "sweep", ...}.

    Raises:
        UsageError: not a run folder, or its recipe has no key 'eval'. GenalignError: the run has no adapter yet.
    """
    from genalign.evaluation.card import write_card
    from genalign.evaluation.evaluate import evaluate
    from genalign.evaluation.report import write_report

    folder = Path(run)
    more = [str(portable(name, Path())) for name in rewards]  # relative to here, not to the run
    built = load_run(folder, device(), more)
    settings = built.recipe.eval
    if settings is None or built.eval_prompts is None:
        raise UsageError(f"{folder / RECIPE} has no key 'eval'; add one that names eval.prompts")
    result = evaluate(
        built.policy,
        list(built.eval_prompts),
        built.eval_rewards,
        built.held_out,
        settings,
        folder,
        training=built.rewarded_prompts,
    )
    write_report(folder)
    write_card(folder)
    return result


def print_evaluation(result: dict[str, Any], as_json: bool = False) -> None:
    """The table of an evaluation, or one JSON object a metric."""
    if as_json:
        print("\n".join(json.dumps({"metric": name, **row}) for name, row in result["metrics"].items()))
        return
    from genalign.evaluation.evaluate import print_table

    print_table(result)
