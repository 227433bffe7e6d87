"""The base's rows that are shipped belong to shipped recipes as they are today, and are what the base draws.

`genalign lab build base-rows` makes them again. Without any, evaluations draw their base; nothing is tested then.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from genalign.evaluation.base_rows import read_rows, room
from genalign.evaluation.trial import metrics_of, trial_of
from genalign.files.shipped import shipped_models, shipped_recipes
from genalign.run.build import Built, build
from genalign.run.recipe import load_recipe

FILES = sorted(room().glob("*.json"))
LARGEST = 1 << 20  # bytes: they travel with the package


@cache
def drawings() -> dict[str, Built]:
    """Digest -> a shipped recipe that draws its base so."""
    found: dict[str, Built] = {}
    for name in shipped_recipes():
        recipe = load_recipe(name)
        if recipe.eval is not None and recipe.policy.model in shipped_models():
            built = build(recipe)
            found.setdefault(str(built.drawing), built)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_of_a_shipped_recipe_and_small(file: Path) -> None:
    assert file.stem.rpartition("-")[2] in drawings(), "no recipe draws its base so any more; build the rows again"
    assert file.stat().st_size <= LARGEST


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rows_are_what_the_base_draws(file: Path) -> None:
    """On the prompts of the first micro-batch; another processor may round a few pictures otherwise."""
    digest = file.stem.rpartition("-")[2]
    built = drawings()[digest]
    assert built.recipe.eval is not None
    judge, prompts = built.held_out[0], list(built.eval_prompts or ())
    known = read_rows(digest, trial_of(built.policy, prompts, [judge], metrics_of(judge), built.recipe.eval))
    assert known is not None, "the judge is another; build the rows again"
    first = built.recipe.eval.model_copy(update={"count": built.recipe.policy.batch_size})
    fresh = trial_of(built.policy, prompts, [judge], metrics_of(judge), first).sweep("reference")
    rows = known[1][:, : fresh.shape[1]]
    same = (rows == fresh) | (np.isnan(rows) & np.isnan(fresh))
    assert same.mean() > 0.97
