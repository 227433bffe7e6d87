"""`make table`: every recipe of a shipped model trained and measured, cell by cell, and the tables of the results.

A finished cell stands in assets/table.json; interrupted work goes on from there, and from the checkpoints of the cell
that was being trained. A cell is done again when its recipe, a reward file or a shipped model is another.
"""

from __future__ import annotations

import fcntl
import json
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genalign.cli.table_cells import Cell, cells
from genalign.cli.table_pages import write_pages
from genalign.evaluation.report import read_eval
from genalign.files.atomic import replace_file
from genalign.files.shipped import shipped
from genalign.run.launch import train_recipe
from genalign.run.recipe import RECIPE
from genalign.training.metrics import METRICS, read_rows


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
    shown = {"reward": optimised} | {metric.split("/")[-1]: metric for metric in cell.medium.aspects}
    shown |= {"judge": judge} if held_out else {}
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
