"""What a training step costs at another commit and here: `python -m tests.bench.against COMMIT [RECIPE]`.

Both are checked out as they are, with the recipe and the models of their time, and run by turns (A B A B); a step's
cost is that of a long run less that of a short one, so that loading, grids and compiling fall out.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
SHORT, LONG, TURNS = 2, 8, 2  # steps of the two runs, and how often each commit has its turn


def run(tree: Path, recipe: str, steps: int, work: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a training run."""
    words = ["train", recipe, "eval=null", "train.monitor=null", f"train.steps={steps}", "train.sample_every=1000"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    out = work / f"{tree.name}-{steps}-{time.time_ns()}"
    command = [sys.executable, "-m", "genalign", *words, "--out", str(out)]
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def step(tree: Path, recipe: str, work: Path) -> tuple[float, float]:
    """Wall and CPU seconds of one step."""
    (wall, cpu), (longer, more) = run(tree, recipe, SHORT, work), run(tree, recipe, LONG, work)
    return (longer - wall) / (LONG - SHORT), (more - cpu) / (LONG - SHORT)


def main(commit: str, recipe: str = "image-nft") -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        then = work / "then"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(then), commit], cwd=ROOT, check=True)
        try:
            costs: dict[Path, list[tuple[float, float]]] = {then: [], ROOT: []}
            for _ in range(TURNS):
                for tree in costs:
                    costs[tree].append(step(tree, recipe, work))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(then)], cwd=ROOT, check=True)
    print(f"| {recipe}, seconds a step | wall | CPU |\n|---|---|---|")
    (old_wall, old_cpu), (wall, cpu) = ([median(side) for side in zip(*costs[tree], strict=True)] for tree in costs)
    print(f"| {commit} | {old_wall:.2f} | {old_cpu:.2f} |\n| here | {wall:.2f} | {cpu:.2f} |")
    print(f"| ratio | {old_wall / wall:.2f} | {old_cpu / cpu:.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
