"""What a run ends with: the adapter, before against after, a table, a report, a card, and a sentence about it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genalign.method.search.base import Searched, Searching
from genalign.ranks import rank
from genalign.run.build import Built
from genalign.run.recipe import Recipe
from genalign.training.metrics import METRICS, read_rows
from genalign.training.signal import lack_of_signal
from genalign.types import Prompt, UsageError, Weights

if TYPE_CHECKING:
    from genalign.evaluation.trial import Drawing


def measure_search(built: Built, method: Searching, run: Path) -> None:
    """The run of a method that trains nothing: plain samples (before) against searched ones (after), and the report."""
    if built.recipe.eval is None or built.eval_prompts is None:
        raise UsageError(
            f"method {method.name} trains nothing, so its run is its evaluation; add the key 'eval', or search by "
            f"genalign sample {built.recipe.name} PROMPT"
        )
    policy = Searched(built.policy, method, built.reward, built.recipe.policy.batch_size)
    with built.policy.weights("reference"):
        result = measure(built, run, policy=policy, training=())
    if rank() == 0:
        show(result, run, "eval.json and report.html are written")


def finish(built: Built, run: Path) -> None:
    """What a run ends with: the adapter, the evaluation, the report, the model card, and a sentence about it all."""
    if rank() == 0:
        with built.policy.weights(tuned(built.recipe)):
            built.policy.save_adapter(run / "adapter")
    result = None
    if built.recipe.eval is not None and built.eval_prompts is not None:
        result = measure(built, run, tuned(built.recipe))
    if rank() == 0:
        from genalign.evaluation.card import write_card

        write_card(run)
        lack = lack_of_signal(run)
        show(result, run, f"report.html, README.md and adapter/ are written{f', but {lack}' if lack else ''}")


def measure(
    built: Built,
    run: Path,
    which: Weights = "policy",
    policy: Drawing | None = None,
    training: Sequence[Prompt] | None = None,
) -> dict[str, Any]:
    """Before against after as the recipe has it, written to `run`/eval.json.

    policy: what is evaluated, by default the recipe's own. training: the prompts that were trained on, by default the
    recipe's.

    Raises:
        UsageError: the recipe has no key 'eval'.
    """
    from genalign.evaluation.evaluate import evaluate

    settings = built.recipe.eval
    if settings is None or built.eval_prompts is None:
        raise UsageError(f"the recipe of {run} has no key 'eval'; add one that names eval.prompts")
    return evaluate(
        policy or built.policy,
        list(built.eval_prompts),
        built.eval_rewards,
        built.held_out,
        settings,
        run,
        which,
        built.rewarded_prompts if training is None else training,
        built.drawing,
    )


def show(result: Mapping[str, Any] | None, run: Path, written: str) -> None:
    """Write the report of the run; print the table of its evaluation, what is written, and, last, the sentence."""
    from genalign.evaluation.evaluate import print_table
    from genalign.evaluation.report import write_report
    from genalign.evaluation.summary import lead_in, sentence

    write_report(run)
    if result is not None:
        print_table(result)
    print(f"{run}: {written}")
    if result is not None:
        print(sentence(result, lead_in(read_rows(run / METRICS))))


def tuned(recipe: Recipe) -> Weights:
    return "policy" if recipe.train.ema is None else "ema"
