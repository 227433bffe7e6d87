"""A finished run measured anew, by its recipe or by suites: what a program calls, and what `genalign eval` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genalign.cli.sample import device
from genalign.files.places import portable
from genalign.run.build import build
from genalign.run.finish import measure
from genalign.run.folder import load_run, run_recipe
from genalign.training.metrics import METRICS, read_rows
from genalign.types import UsageError


def evaluate_run(run: str | Path, rewards: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate a finished run anew; its eval.json, report.html and model card are written again.

    rewards: further ones to measure; their files are relative to the working directory.

    Returns what eval.json holds: {"metrics": {name: {"before", "after", "delta", "ci95", "held_out"}}, "sweep", ...}.

    Raises:
        UsageError: not a run folder, or its recipe has no key 'eval'. GenalignError: the run has no adapter yet.
    """
    from genalign.evaluation.card import write_card
    from genalign.evaluation.report import write_report

    folder = Path(run)
    more = [str(portable(name, Path())) for name in rewards]  # relative to here, not to the run
    built = load_run(folder, device(), more)
    result = measure(built, folder)
    write_report(folder)
    write_card(folder)
    return result


def evaluate_suites(
    run: str | Path, suites: Sequence[str], judges: Sequence[str] = (), rewards: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Base and tuned model on suites of prompts: name -> what eval.json holds, written to RUN/suites/NAME/eval.json.

    RUN/report.html is written again and shows them.

    suites: NAME=FILE or FILE, see `suite_settings`. judges: what scores them, in place of each suite's own reward;
    rewards: further ones. Both are relative to the working directory.

    Raises:
        UsageError: no such suite, file or reward, or one that reads what the prompts lack: before any weight loads.
    """
    from genalign.evaluation.report import write_report
    from genalign.evaluation.suites import suite_settings

    folder = Path(run)
    recipe = run_recipe(folder)
    by, more = ([str(portable(name, Path())) for name in names] for names in (judges, rewards))
    built = {}
    for spec in suites:
        name, settings = suite_settings(spec, by, more, recipe.eval)
        if name in built:
            raise UsageError(f"two suites are called {name!r}; give one of the files another name")
        built[name] = build(recipe.model_copy(update={"eval": settings}), device())
        built[name].eval_rewards = [each for each in built[name].eval_rewards if each is not built[name].reward]
    policy = next(iter(built.values())).policy
    policy.load_adapter(folder / "adapter")
    found = {name: measure(one, folder / "suites" / name, policy=policy, training=()) for name, one in built.items()}
    write_report(folder)
    return found


def print_suites(results: Mapping[str, dict[str, Any]], as_json: bool = False) -> None:
    """A table a suite, or one JSON object a metric."""
    from genalign.evaluation.evaluate import print_table

    for name, result in results.items():
        if as_json:
            for metric, row in result["metrics"].items():
                print(json.dumps({"suite": name, "metric": metric, **row}))
        else:
            print_table(result, f"{name}: ")


def print_evaluation(result: dict[str, Any], run: Path, as_json: bool = False) -> None:
    """The table of an evaluation and a sentence about it, or one JSON object a metric."""
    if as_json:
        print("\n".join(json.dumps({"metric": name, **row}) for name, row in result["metrics"].items()))
        return
    from genalign.evaluation.evaluate import print_table
    from genalign.evaluation.summary import lead_in, sentence

    print_table(result)
    print(sentence(result, lead_in(read_rows(run / METRICS))))
