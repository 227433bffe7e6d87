"""A finished run measured anew: `evaluate_run` for a program, `print_evaluation` is `genalign eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genalign.cli.sample import device
from genalign.files.places import portable
from genalign.run.finish import measure
from genalign.run.launch import load_run
from genalign.training.metrics import METRICS, read_rows


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


def print_evaluation(result: dict[str, Any], run: Path, as_json: bool = False) -> None:
    """The table of an evaluation and a sentence about it, or one JSON object a metric."""
    if as_json:
        print("\n".join(json.dumps({"metric": name, **row}) for name, row in result["metrics"].items()))
        return
    from genalign.evaluation.evaluate import print_table
    from genalign.evaluation.summary import lead_in, sentence

    print_table(result)
    print(sentence(result, lead_in(read_rows(run / METRICS))))
