"""`make table`: every shipped image recipe trained and measured, one cell at a time, and the tables of the results.

A finished cell stands in assets/table.json; interrupted work goes on from there, and from the checkpoints of the cell
that was being trained. A cell is done again when its recipe, a reward file or a shipped model is another.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from genalign.evaluation.report import read_eval
from genalign.files.atomic import replace_file
from genalign.files.settings import read_yaml
from genalign.files.shipped import shipped
from genalign.run.build import build
from genalign.run.launch import RECIPE, train_recipe
from genalign.run.recipe import load_recipe
from genalign.training.metrics import METRICS, read_rows
from genalign.types import UsageError

DIVERSITY, JUDGED = "vendi", "judge/all_facts"
SEEDS = dict.fromkeys(("d3po", "flow-grpo", "flow-dpo", "nft", "dragon-frechet"), 3)
REWARDS = {"d3po": ("rule", "clip"), "flow-grpo": ("rule", "clip")}  # what else these two are trained on
TRAINING_PROMPTS = 512  # those that the reward is also read on: what is learnt, whether or not it carries over
T_975 = {2: 12.71, 3: 4.30}  # Student's t of n - 1 degrees of freedom
MARKS = ("<!-- table of all, written by `make table` -->", "<!-- end of table -->")
MARKED = re.compile(r"<!-- table of ([\w -]+), written by `make table` -->.*?<!-- end of table -->", re.DOTALL)
BEST = 5  # rows of the README's table


@dataclass(frozen=True)
class Cell:
    """One training run: a recipe, a seed, and another reward file than its own."""

    recipe: str
    seed: int = 0
    reward: str | None = None

    @property
    def row(self) -> str:
        """What the cell's seeds are one row of."""
        return self.recipe if self.reward is None else f"{self.recipe}, {self.reward} only"

    @property
    def name(self) -> str:
        return f"{self.recipe}{f'-{self.reward}' if self.reward else ''}-seed-{self.seed}"

    def overrides(self, work: Path) -> list[str]:
        recipe = load_recipe(self.recipe)
        assert recipe.eval is not None
        own = f"{recipe.policy.model}-{self.reward or Path(str(recipe.reward)).stem}-{recipe.eval.count}"
        more = [spec for spec in recipe.eval.rewards if spec != "image-vendi.yaml"]
        words = [f"train.seed={self.seed}", f"eval.base_cache={work / f'base-{own}-{recipe.policy.dtype}.safetensors'}"]
        words.append(f"eval.training_prompts={TRAINING_PROMPTS}")
        if recipe.reward != "image-vendi.yaml":
            words.append(f"eval.rewards={json.dumps([*more, 'image-vendi.yaml'])}")
        return words + self._rewarded()

    def digest(self) -> str:
        """Of all that the result depends on: recipe, prompts, rewards, judge, and the model's weights."""
        recipe = load_recipe(self.recipe, [f"train.seed={self.seed}", *self._rewarded()])
        built = build(recipe)
        files = [built.data, built.eval_prompts]
        rewards = [built.reward, *built.held_out, *built.eval_rewards]
        hashed = [self.name, json.dumps(read_yaml(shipped("pipelines", f"{self.recipe}.yaml")), sort_keys=True)]
        hashed += [prompts.digest for prompts in files if prompts] + [reward.version for reward in rewards if reward]
        hashed += [file_digest(path) for path in sorted(shipped("assets", recipe.policy.model).glob("*/*.safetensors"))]
        more = (recipe.policy.writer, recipe.policy.merged, getattr(recipe.method, "noisy", None))
        for model in more:  # of Parrot, of ReNO, of Flow-NRG
            weights = sorted(shipped("assets", model).glob("*.safetensors")) if model else []
            hashed += [file_digest(path) for path in weights]
        return hashlib.sha256(json.dumps(hashed).encode()).hexdigest()[:16]

    def _rewarded(self) -> list[str]:
        return [] if self.reward is None else [f"reward=image-{self.reward}.yaml"]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cells() -> list[Cell]:
    """The runs with several seeds first, seed by seed, so that an early stop leaves one of everything that matters."""
    names = sorted(path.stem for path in shipped("pipelines").glob("image-*.yaml"))
    short = {name: name.removeprefix("image-") for name in names}
    found = []
    for seed in range(max(SEEDS.values())):
        found += [Cell(name, seed) for name in names if seed < SEEDS.get(short[name], 0)]
    for name in names:
        found += [Cell(name, 0, reward) for reward in REWARDS.get(short[name], ())]
    return found + [Cell(name) for name in names if short[name] not in SEEDS]


def measure(cell: Cell, work: Path) -> dict[str, Any]:
    """Train and evaluate the cell in `work`, or finish what is there, and return what the table keeps of it."""
    run = work / f"{cell.name}-{cell.digest()[:8]}"
    begun = (run / RECIPE).is_file() and (run / "metrics.jsonl").is_file()
    train_recipe(cell.recipe, cell.overrides(work), run, resume=str(run) if begun else None)
    result, log = read_eval(run), read_rows(run / METRICS)
    assert result is not None
    learnt = {name.split(" on ")[0]: name for name in result["metrics"] if name.endswith(" training prompts")}
    totals = [name for name in result["metrics"] if name.endswith("/total")]  # of what a search optimised, first
    optimised = next(iter([*learnt, *totals, *result["metrics"]]))
    judge = result["sweep"]["headline"]
    held_out = result["metrics"][judge]["held_out"]  # else it is the training reward
    shown = {"reward": optimised, "vendi": DIVERSITY} | ({"judge": judge} if held_out else {})
    shown |= {f"{what}_learnt": learnt[name] for what, name in shown.items() if name in learnt}
    return {
        "digest": cell.digest(),
        "prompts": result["prompts"],
        "steps": len(log),
        "train_seconds": round(sum(row["step_time"] for row in log)),
        "calls": round(sum(row["calls"] for row in log)),
        "samples": sum(round(row["perf/samples_per_s"] * row["step_time"]) for row in log),
        "metrics": {what: {"name": name, **result["metrics"][name]} for what, name in shown.items()
                    if name in result["metrics"]},
        "sweep": {
            "guidance": result["sweep"]["guidance"],
            **{when: result["sweep"][when]["metrics"][judge] if held_out else None for when in ("before", "after")},
        },
    }  # fmt: skip


@contextmanager
def locked(path: Path) -> Any:
    """The finished cells, to be changed by one process at a time; they are replaced as a whole, or not at all."""
    guard = path.with_name(f".{path.name}.lock")
    with guard.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        yield held
        replace_file(path, json.dumps(held, indent=1, sort_keys=True) + "\n")
    guard.unlink(missing_ok=True)


Row = Mapping[str, Any]  # what assets/table.json keeps of one cell


def rendered(done: Mapping[str, Row]) -> str:
    """The whole table in Markdown, a row a recipe, its seeds together; and the judge at every guidance scale."""
    rows = _rows(done)
    missing = [cell.name.removeprefix("image-") for cell in cells() if cell.name not in done]
    unmeasured = ["", f"Not measured yet on these models: {', '.join(missing)}."] if missing else []
    return "\n".join([*_measured(rows), "", *_swept(rows), *unmeasured])


def rendered_of(done: Mapping[str, Row], recipes: Sequence[str]) -> str:
    """The rows of some recipes, named without `image-`, with every reward that they were trained on.

    Raises:
        UsageError: a recipe that has no cell.
    """
    names = {cell.row: cell.recipe.removeprefix("image-") for cell in cells()}
    unknown = sorted(set(recipes) - set(names.values()))
    if unknown:
        raise UsageError(f"a mark asks for the table of {unknown[0]}, which is not a shipped image recipe; correct it")
    return "\n".join(_measured({row: found for row, found in _rows(done).items() if names[row] in recipes}))


def rendered_best(done: Mapping[str, Row]) -> str:
    """The rows whose gain of the held-out judge on held-out prompts is surest: whose interval begins highest."""
    gains = {}
    for name, found in _rows(done).items():
        judged = [one["metrics"]["judge"] for one in found if "judge" in one["metrics"]]
        if judged and all(one["name"] == JUDGED for one in judged):  # a subject, say, has a judge of its own
            gains[name] = _difference(judged)
    lines = ["| recipe | seeds | before | after | difference, 95% interval | minutes |", "|---|---|---|---|---|---|"]
    for name in sorted(gains, key=lambda name: gains[name][2], reverse=True)[:BEST]:
        before, after, low, high = gains[name]
        found = _rows(done)[name]
        between = f"{100 * low:+.1f} to {100 * high:+.1f} points"
        lines.append(f"| `{name}` | {len(found)} | {before:.1%} | {after:.1%} | {between} | {_minutes(found)} |")
    return "\n".join(lines)


def _rows(done: Mapping[str, Row]) -> dict[str, list[Row]]:
    """What is finished of each row, seed by seed."""
    rows: dict[str, list[Row]] = {}
    for cell in cells():
        if cell.name in done:
            rows.setdefault(cell.row, []).append(done[cell.name])
    return rows


def _measured(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    lines = [
        "| recipe | seeds | its reward, training prompts | its reward, held-out prompts "
        "| held-out judge, training prompts | held-out judge, held-out prompts | Vendi | samples | calls | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        shown = []
        for what in ("reward_learnt", "reward", "judge_learnt", "judge", "vendi"):
            measured = [one["metrics"][what] for one in found if what in one["metrics"]]
            shown.append(_compared(measured, percent=what.startswith("judge")))
        lines.append(f"| {name.removeprefix('image-')} | {len(found)} | {' | '.join(shown)} | {_spent(found)} |")
    return lines


def _spent(found: Sequence[Row]) -> str:
    """Samples, denoiser calls of one sample, and minutes of a training, on average over seeds."""
    samples, calls = (mean(one[what] for one in found) for what in ("samples", "calls"))
    return f"{samples:,.0f} | {calls:,.0f} | {_minutes(found)}"


def _minutes(found: Sequence[Row]) -> str:
    return f"{mean(one['train_seconds'] for one in found) / 60:.1f}"


def _swept(rows: Mapping[str, Sequence[Row]]) -> list[str]:
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
        lines.append(f"| {name.removeprefix('image-')} | {' | '.join(shown)} |")
    return lines


def _difference(rows: Sequence[Row]) -> tuple[float, float, float, float]:
    """before, after, and the 95% interval of the difference.

    Of several seeds the means; their prompts are the same, so the half-width of one bootstrap stays, and Student's
    interval of the seeds' mean joins it, as independent errors add.
    """
    before, after = mean(row["before"] for row in rows), mean(row["after"] for row in rows)
    delta = mean(row["delta"] for row in rows)
    low, high = mean(row["ci95"][0] for row in rows), mean(row["ci95"][1] for row in rows)
    if len(rows) > 1:
        between = T_975[len(rows)] * stdev(row["delta"] for row in rows) / len(rows) ** 0.5
        low, high = delta - ((delta - low) ** 2 + between**2) ** 0.5, delta + ((high - delta) ** 2 + between**2) ** 0.5
    return before, after, low, high


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
    """A page with the tables between its marks written anew: of all, of the best, or of the recipes that a mark names.

    Raises:
        UsageError: a mark that names an unknown recipe.
    """

    def written(mark: re.Match[str]) -> str:
        what = mark[1]
        if what == "all":
            table = rendered(done)
        elif what == "the best":
            table = rendered_best(done)
        else:
            table = rendered_of(done, what.split())
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


def main(wanted: Sequence[str]) -> None:
    """Do the cells that are missing: all of them, or those whose name begins with one of `wanted`."""
    path, work = shipped("assets") / "table.json", Path("runs/table")
    chosen = [cell for cell in cells() if not wanted or cell.name.startswith(tuple(wanted))]
    for cell in chosen:
        done = json.loads(path.read_text()) if path.is_file() else {}
        if done.get(cell.name, {}).get("digest") == cell.digest():
            continue
        print(f"== {cell.name}", flush=True)
        row = measure(cell, work)
        with locked(path) as held:
            held[cell.name] = row
    with locked(path) as held:
        digests = {cell.name: cell.digest() for cell in cells()}
        for name in [name for name, row in held.items() if row["digest"] != digests.get(name)]:
            del held[name]  # of another recipe, reward, model or judge
        write_pages(held)


if __name__ == "__main__":
    main(sys.argv[1:])
