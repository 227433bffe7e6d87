"""The tab Inspect: what a run folder holds, its best and worst samples, and another run from its recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from genalign.demo import markup
from genalign.demo.cards import Drawn, Ranges, figure, ranges_of, score
from genalign.demo.models import BASE, Models
from genalign.demo.works import Work
from genalign.evaluation.report import sections
from genalign.run.recipe import RECIPE, Recipe, load_recipe
from genalign.training.metrics import METRICS, read_rows
from genalign.training.monitor import ALARM, PREFIX
from genalign.types import Prompt, UsageError

FRAMES = 8  # of the film strip
LOOKED_AT, SHOWN = 16, 4  # samples of which the best and the worst are shown, and how many of each
AROUND = re.compile(r"\s*=\s*")
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
    parts = [f"<h2>{markup.text(name)}</h2>", markup.note(monitored(run)), _film(run), *sections(run), _recipe(run)]
    return f'<div class="report">{"".join(parts)}</div>'


def monitored(run: Path) -> str:
    """Whether a monitor of held-out rewards found the training reward hacked, as a sentence."""
    looks = [row for row in read_rows(run / METRICS) if any(key.startswith(PREFIX) for key in row)]
    if not looks:
        return "Nothing watched whether its reward was hacked; train.monitor does."
    alarms = [int(row["step"]) for row in looks if row.get(ALARM)]
    if not alarms:
        return f"Its monitor looked {len(looks)} times at held-out rewards and found no sign of a hacked reward."
    return (
        f"The reward is hacked: at step {alarms[0]} it had risen while a held-out one fell, look after look; "
        f"the charts called monitor show both."
    )


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


# ---- best and worst -------------------------------------------------------------------------------------------------


def extremes(models: Models, work: Work, name: str) -> Iterator[str]:
    """HTML of the run's samples of evaluation prompts, as they come, and then of the best and the worst of them: by the
    held-out judge, among equal ones by the reward.

    Raises:
        GenalignError: no such run, or it cannot be drawn from. CancelledError: by the page.
    """
    found: list[tuple[Prompt, Drawn]] = []
    prompts = [models.prompt(text) for text in models.offered[:LOOKED_AT]]
    with models.drawing(name) as source:
        for k, prompt in enumerate(prompts):
            work.check()
            with work.networks(), source.policy.weights("reference" if name == BASE else "policy"):
                found.append((prompt, Drawn(0, {name: source.policy.generate([prompt], [0])})))
            score(models, work, prompt, [found[-1][1]])
            done = (k + 1) / len(prompts)
            yield markup.progress(done, f"{k + 1} of {len(prompts)}{markup.seconds_left(done, work.spent)}")
    yield _best_and_worst(found, name)


def _best_and_worst(found: Sequence[tuple[Prompt, Drawn]], name: str) -> str:
    def worth(pair: tuple[Prompt, Drawn]) -> list[float]:
        blocks = sorted(pair[1].scores.get(name, []), key=lambda block: not block[1])  # the judge first
        totals = [bars[0][1] for _, _, bars in blocks if bars]
        return [float("-inf") if total is None else total for total in totals]

    ranked, ranges = sorted(found, key=worth, reverse=True), ranges_of([drawn for _, drawn in found])
    if not any(drawn.scores for _, drawn in found):
        return markup.note("no reward of this recipe scores its prompts, so none is best or worst")
    best, worst = ranked[:SHOWN], ranked[: -SHOWN - 1 : -1]
    return _row("Best", best, name, len(found), ranges) + _row("Worst", worst, name, len(found), ranges)


def _row(title: str, some: Sequence[tuple[Prompt, Drawn]], name: str, count: int, ranges: Ranges) -> str:
    made = ""
    for prompt, drawn in some:
        shown = figure(name, f"{prompt.text}, seed {drawn.seed}", drawn, ranges)
        made += f'<article class="card"><p class="caption">{markup.text(prompt.text)}</p>{shown}</article>'
    heading = f"{title} {len(some)} of {markup.count(count, 'sample')}"
    return f'<section class="extremes"><h2>{heading}</h2><div class="cards">{made}</div></section>'


# ---- another run ----------------------------------------------------------------------------------------------------


def changed(models: Models, name: str, text: str) -> tuple[list[str], Recipe]:
    """The words with which `genalign train` runs the recipe of a run with these changes, one a line; and that recipe.

    A change from the page is a key and a number, true, false, null or one word: no path, no code and no address.

    Raises:
        GenalignError: no such run, another kind of value, or as of `load_recipe`.
    """
    lines = [AROUND.sub("=", line.strip()) for line in text.splitlines() if line.strip()]
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
