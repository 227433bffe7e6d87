"""`genalign eval`: measure a finished run anew."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from genalign.cli.sample import device
from genalign.files.places import portable
from genalign.run.launch import RECIPE, load_run
from genalign.types import UsageError


def evaluate_run(args: Namespace) -> None:
    """Evaluate a finished run anew, with further rewards if asked for."""
    from genalign.evaluation.card import write_card
    from genalign.evaluation.evaluate import evaluate, print_table
    from genalign.evaluation.report import write_report

    more = [str(portable(name, Path())) for name in args.reward]  # relative to here, not to the run
    built = load_run(args.run, device(), more)
    settings = built.recipe.eval
    if settings is None or built.eval_prompts is None:
        raise UsageError(f"{args.run / RECIPE} has no key 'eval'; add one that names eval.prompts")
    prompts = list(built.eval_prompts)
    rewards, training = built.eval_rewards, built.rewarded_prompts
    result = evaluate(built.policy, prompts, rewards, built.held_out, settings, args.run, training=training)
    write_report(args.run)
    write_card(args.run)
    if args.json:
        print("\n".join(json.dumps({"metric": name, **row}) for name, row in result["metrics"].items()))
    else:
        print_table(result)
