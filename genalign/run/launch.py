"""`genalign train`, from the launcher's environment to the report: what a run does, in its order."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from genalign.method.search.base import Searching
from genalign.method.search.nrg import Guidance
from genalign.ranks import rank, world
from genalign.run.build import build, check_prompts
from genalign.run.copies import Copy
from genalign.run.finish import finish, measure_search
from genalign.run.folder import run_folder, run_to_resume
from genalign.run.launcher import check_launcher, join_ranks, ranks_promised
from genalign.run.recipe import load_recipe
from genalign.run.steps import run_steps
from genalign.training.checkpoint import load_checkpoint, newest_checkpoint
from genalign.training.progress import Progress, restore, start
from genalign.types import UsageError


def train_recipe(
    name: str,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    resume: str | None = None,
    plan: bool = False,
    card: str | None = None,
) -> Path | None:
    """Run a recipe; returns the run folder (None for a plan, which leaves nothing behind).

    card: the memory of a card, as 24GB; the plan is then of memory alone, predicted without loading or downloading.
    """
    check_launcher(os.environ)
    recipe = load_recipe(name, overrides)
    if card is not None:
        from genalign.run.memory import print_memory

        if not plan:
            raise UsageError("--card belongs to --plan; give both")
        one, ranks = ranks_promised(os.environ)
        if one == 0:
            print_memory(recipe, card, ranks)
        return None
    if resume is not None:
        recipe.train.resume = resume
    copy = Copy(recipe.train.copy_to) if recipe.train.copy_to is not None and not plan else None
    device = join_ranks()
    check_launcher(os.environ, world())
    if recipe.data.prompts_per_step < world():
        raise UsageError(
            f"data.prompts_per_step is {recipe.data.prompts_per_step}, fewer than the {world()} ranks; raise it"
        )
    if rank() != 0:
        copy = None
    elif copy is not None:
        copy.claim(recipe)
    begun = run_to_resume(recipe, out)
    built = build(recipe, device)
    if built.monitor is not None and len(built.monitor.chosen) < world():
        raise UsageError(
            f"train.monitor follows {len(built.monitor.chosen)} prompts, fewer than the {world()} ranks; name more"
        )
    if plan:
        from genalign.run.plan import print_plan

        check_prompts(built)
        print_plan(built)
        return None
    if isinstance(built.method, Guidance):
        built.method.reward()  # before anything is drawn that it would guide
    with ExitStack() as held:
        run = run_folder(recipe, out, begun, held)
        if copy is not None:
            copy.check_apart(run)
            held.enter_context(copy.held(recipe, run))
        check_prompts(built)
        if isinstance(built.method, Searching):
            measure_search(built, built.method, run)
            if copy is not None:
                copy.update(run)
            return run
        # The policy first: it seeds the global generators, from which the loading of a reward may draw.
        policy, digests = built.policy, {"data.prompts": built.data.digest}
        if built.reward is not None:
            digests["reward"] = built.reward.version
        progress = start(policy, built.reward, recipe.train, digests)
        if begun is not None:
            resume_from(progress, run)
        run_steps(built, progress, run, copy)
        finish(built, run)
        if copy is not None:
            copy.update(run)
    return run


def resume_from(progress: Progress, run: Path) -> None:
    folder, refused = newest_checkpoint(run)
    if rank() == 0:
        for sentence in refused:
            print(sentence, file=sys.stderr)
        print(f"resuming from {folder or 'the start: no whole checkpoint'}", file=sys.stderr)
    if folder is not None:
        restore(progress, load_checkpoint(folder))
