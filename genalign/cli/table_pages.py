"""The tables of README and docs/, written from the finished cells of `make table` between marks in the pages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import hypot
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from genalign.cli.table_cells import IMAGE, MEDIA, MUSIC, VIDEO, Medium, cells
from genalign.files.atomic import replace_file
from genalign.files.shipped import shipped
from genalign.types import UsageError

T_975 = {2: 12.71, 3: 4.30}  # Student's t of n - 1 degrees of freedom
MARKS = ("<!-- table of all, written by `make table` -->", "<!-- end of table -->")
MARKED = re.compile(r"<!-- table of ([\w -]+), written by `make table` -->.*?<!-- end of table -->", re.DOTALL)
BEST = 5  # rows of the README's table
Row = Mapping[str, Any]  # what assets/table.json keeps of one cell
Rows = Mapping[str, Sequence[Row]]  # the seeds of each row of a table

COLUMNS = {  # heading -> what of a cell stands under it
    IMAGE: {
        "its reward, training prompts": "reward_learnt",
        "its reward, held-out prompts": "reward",
        "held-out judge, training prompts": "judge_learnt",
        "held-out judge, held-out prompts": "judge",
        "Vendi": "vendi",
    },
    VIDEO: {
        "VQ wins": "VQ",
        "MQ wins": "MQ",
        "TA wins": "TA",
        "its reward, held-out prompts": "reward",
        "held-out judge, training prompts": "judge_learnt",
        "held-out judge, held-out prompts": "judge",
    },
    MUSIC: {
        "per-song FAD wins": "frechet-per-song",
        "its reward, held-out prompts": "reward",
        "held-out judge, training prompts": "judge_learnt",
        "held-out judge, held-out prompts": "judge",
    },
}


def rendered(done: Mapping[str, Row], medium: Medium = IMAGE) -> str:
    """The whole table of a medium in Markdown, a row a recipe, its seeds together; of images also the judge at every
    guidance scale."""
    rows = _rows(done, medium)
    missing = [cell.name.removeprefix(medium.prefix) for cell in cells() if cell.medium == medium]
    missing = [name for name in missing if medium.prefix + name not in done]
    unmeasured = ["", f"Not measured yet on these models: {', '.join(missing)}."] if missing else []
    swept = ["", *_swept(rows)] if medium == IMAGE else []
    return "\n".join([*_measured(rows, medium), *swept, *unmeasured])


def rendered_of(done: Mapping[str, Row], recipes: Sequence[str]) -> str:
    """The rows of some recipes, named without `image-` and the like, with all their variants; those of each other
    medium in a table of their own, once there are any.

    Raises:
        UsageError: a recipe that has no cell.
    """
    names = {cell.row: cell.recipe.removeprefix(cell.medium.prefix) for cell in cells()}
    unknown = sorted(set(recipes) - set(names.values()))
    if unknown:
        raise UsageError(f"a mark asks for the table of {unknown[0]}, which no shipped recipe trains; correct it")
    lines: list[str] = []
    for medium in MEDIA:
        chosen = {row: found for row, found in _rows(done, medium).items() if names[row] in recipes}
        if chosen or medium == IMAGE:
            lines += [*([""] if lines else []), *_measured(chosen, medium)]
    return "\n".join(lines)


def rendered_best(done: Mapping[str, Row], medium: Medium = IMAGE) -> str:
    """The rows whose gain of the held-out judge on held-out prompts is surest: whose interval begins highest."""
    gains, rows = {}, _rows(done, medium)
    for name, found in rows.items():
        judged = [one["metrics"]["judge"] for one in found if "judge" in one["metrics"]]
        if judged and all(one["name"] == medium.judge for one in judged):  # a subject, say, has a judge of its own
            gains[name] = _difference(judged)
    lines = ["| recipe | seeds | before | after | difference, 95% interval | minutes |", "|---|---|---|---|---|---|"]
    for name in sorted(gains, key=lambda name: gains[name][2], reverse=True)[:BEST]:
        before, after, low, high = gains[name]
        between = f"{100 * low:+.1f} to {100 * high:+.1f} points"
        seeds, minutes = len(rows[name]), _minutes(rows[name])
        lines.append(f"| `{name}` | {seeds} | {before:.1%} | {after:.1%} | {between} | {minutes} |")
    return "\n".join(lines)


def _rows(done: Mapping[str, Row], medium: Medium) -> dict[str, list[Row]]:
    """What is finished of each row, seed by seed."""
    rows: dict[str, list[Row]] = {}
    for cell in cells():
        if cell.name in done and cell.medium == medium:
            rows.setdefault(cell.row, []).append(done[cell.name])
    return rows


def _measured(rows: Rows, medium: Medium) -> list[str]:
    columns = COLUMNS[medium]
    headings = ["recipe", "seeds", *columns, "samples", "calls", "minutes"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for name, found in rows.items():
        shown = []
        for heading, what in columns.items():
            measured = [one["metrics"][what] for one in found if what in one["metrics"]]
            won = heading.endswith("wins")
            shown.append(_won(measured) if won else _compared(measured, percent=what.startswith("judge")))
        lines.append(f"| {name.removeprefix(medium.prefix)} | {len(found)} | {' | '.join(shown)} | {_spent(found)} |")
    return lines


def _spent(found: Sequence[Row]) -> str:
    """Samples, denoiser calls of one sample, and minutes of a training, on average over seeds."""
    samples, calls = (mean(one[what] for one in found) for what in ("samples", "calls"))
    return f"{samples:,.0f} | {calls:,.0f} | {_minutes(found)}"


def _minutes(found: Sequence[Row]) -> str:
    return f"{mean(one['train_seconds'] for one in found) / 60:.1f}"


def _swept(rows: Rows) -> list[str]:
    """The judge's score at every guidance scale, before -> after, seeds together."""
    judged: dict[str, list[Mapping[str, Any]]] = {}
    known: set[float] = set()
    for name, found in rows.items():
        judged[name] = [one["sweep"] for one in found if one["sweep"]["after"]]
        known.update(*(sweep["guidance"] for sweep in judged[name]))
    scales = sorted(known)
    lines = [
        "| held-out judge at guidance | " + " | ".join(f"{scale:g}" for scale in scales) + " |",
        "|---" * (len(scales) + 1) + "|",
    ]
    for name, sweeps in judged.items():
        shown = []
        for scale in scales:
            at = [(sweep, sweep["guidance"].index(scale)) for sweep in sweeps if scale in sweep["guidance"]]
            before = [sweep["before"][i] for sweep, i in at]
            after = [sweep["after"][i] for sweep, i in at]
            shown.append(f"{mean(before):.1%} -> {mean(after):.1%}" if at else "-")
        lines.append(f"| {name.removeprefix(IMAGE.prefix)} | {' | '.join(shown)} |")
    return lines


def _difference(rows: Sequence[Row]) -> tuple[float, float, float, float]:
    """before, after, and the 95% interval of the difference."""
    before, after = mean(row["before"] for row in rows), mean(row["after"] for row in rows)
    return before, after, *_interval([row["delta"] for row in rows], [row["ci95"] for row in rows])


def _interval(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 95% interval of the mean of one value a seed.

    Their prompts are the same, so the half-width of one bootstrap stays, and Student's interval of the seeds' mean
    joins it, as independent errors add.
    """
    centre = mean(values)
    low, high = (mean(interval[side] for interval in intervals) for side in (0, 1))
    if len(values) == 1:
        return low, high
    between = T_975[len(values)] * stdev(values) / len(values) ** 0.5
    return centre - hypot(centre - low, between), centre + hypot(high - centre, between)


def _won(rows: Sequence[Row]) -> str:
    """Share of prompts on which the tuned model's sample scores higher (interval)."""
    if not rows:
        return "-"
    low, high = _interval([row["wins"] for row in rows], [row["wins95"] for row in rows])
    low, high = max(low, 0.0), min(high, 1.0)  # of few seeds Student's interval leaves what a share can be
    return f"{mean(row['wins'] for row in rows):.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _compared(rows: Sequence[Row], percent: bool) -> str:
    """before -> after (interval of the difference); - where nothing was measured."""
    if not rows:
        return "-"
    before, after, low, high = _difference(rows)
    if percent:
        return f"{before:.1%} -> {after:.1%} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{before:.3g} -> {after:.3g} ({low:+.2g} to {high:+.2g})"


def pages() -> list[Path]:
    """README.md and all of docs/."""
    root = shipped("assets").parent
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(page: str, done: Mapping[str, Row]) -> str:
    """A page with the tables between its marks written anew: of all or the best images (`all`, `the best`) or of
    another medium (`all video`, `the best music`), or of the recipes that a mark names.

    Raises:
        UsageError: a mark that names an unknown recipe.
    """

    def written(mark: re.Match[str]) -> str:
        medium = next((each for each in MEDIA if mark[1].endswith(f" {each.name}")), IMAGE)
        what = mark[1].removesuffix(f" {medium.name}")
        if what == "all":
            table = rendered(done, medium)
        elif what == "the best":
            table = rendered_best(done, medium)
        else:
            table = rendered_of(done, mark[1].split())
        return f"{mark[0].splitlines()[0]}\n\n{table}\n\n{MARKS[1]}"

    return MARKED.sub(written, page)


def write_pages(done: Mapping[str, Row]) -> None:
    """Write the tables of README.md and docs/.

    Raises:
        UsageError: docs/results.md has no marks for the whole table, or a mark names an unknown recipe.
    """
    results = shipped("assets").parent / "docs" / "results.md"
    if not results.is_file() or MARKS[0] not in results.read_text():
        raise UsageError(
            f"{results} has no place for the table; put the lines {MARKS[0]} and {MARKS[1]} where it belongs"
        )
    for page in pages():
        text = page.read_text()
        new = filled(text, done)
        if new != text:
            replace_file(page, new)
