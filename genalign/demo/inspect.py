"""The tab Inspect: what a run folder holds, grids over its steps, and another run from its recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from genalign.demo import markup
from genalign.demo.models import Models
from genalign.evaluation.report import sections
from genalign.run.launch import RECIPE
from genalign.run.recipe import Recipe, load_recipe
from genalign.types import UsageError

FRAMES = 8  # of the film strip
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=[\w+-]*(\.\d[\w+-]*)?")  # a number, true, false, null or one word


def run_names(models: Models) -> list[str]:
    """Every run folder, the newest first."""
    own = [] if models.run is None else [models.run]
    found = {path.name: path for path in [*own, *(file.parent for file in models.runs.glob(f"*/{RECIPE}"))]}
    return sorted(found, key=lambda name: -found[name].stat().st_mtime)


def report(models: Models, name: str) -> str:
    """A run as HTML: the film strip, then what its report shows.

    Raises:
        GenalignError: no such run, or its files are not what a run writes.
    """
    run = models.folder(name)
    return f'<div class="report"><h2>{markup.text(name)}</h2>{_film(run)}{"".join(sections(run))}{_recipe(run)}</div>'


def _film(run: Path) -> str:
    """Grids from the first to the last step, some of them where there are many."""
    grids = sorted(run.glob("samples/step-*/grid.png"), key=lambda path: int(path.parent.name.removeprefix("step-")))
    if len(grids) > FRAMES:
        grids = [grids[round(k * (len(grids) - 1) / (FRAMES - 1))] for k in range(FRAMES)]
    frames = ""
    for grid in grids if len(grids) > 2 else []:  # the first and the last stand among the samples
        step = grid.parent.name.replace("-", " ")
        shown = markup.element(grid, "image", f"base beside tuned samples at {step}")
        frames += f"<figure>{shown}<figcaption>{step}</figcaption></figure>"
    return f'<div class="film" tabindex="0" role="group" aria-label="grids over steps">{frames}</div>' if frames else ""


def _recipe(run: Path) -> str:
    text = (run / RECIPE).read_text(encoding="utf-8")
    return f"<h2>Recipe</h2><pre>{markup.text(markup.FOLDERS.sub('', text))}</pre>"


# ---- another run ----------------------------------------------------------------------------------------------------


def changed(models: Models, name: str, text: str) -> tuple[list[str], Recipe]:
    """The words with which `genalign train` runs the recipe of a run with these changes, one a line; and that recipe.

    A change from the page is a key and a number, true, false, null or one word: no path, no code and no address.

    Raises:
        GenalignError: no such run, another kind of value, or as of `load_recipe`.
    """
    lines = [line.strip().replace(" ", "") for line in text.splitlines() if line.strip()]
    for line in lines:
        if not OVERRIDE.fullmatch(line):
            raise UsageError(f"{line!r} is not a.b=c with a number, true, false, null or one word; write one a line")
    recipe = models.folder(name) / RECIPE
    return [str(recipe), *lines], load_recipe(recipe, lines)


def check(models: Models, name: str, text: str) -> str:
    """What the form says while somebody types.

    Raises:
        GenalignError: as of `changed`.
    """
    words, recipe = changed(models, name, text)
    steps, method = recipe.train.steps, recipe.method.name
    return markup.note(
        f"{method} on {Path(recipe.policy.model).name}, {markup.count(steps, 'step')}, {_count(words[1:])}"
    )


def _count(changes: Sequence[str]) -> str:
    return f"{markup.count(len(changes), 'change')} of the recipe" if changes else "the recipe as it was"
