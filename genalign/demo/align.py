"""The tab Align: a training on the votes in a process of its own, which goes on when the page is closed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genalign.demo import markup
from genalign.demo.exchange import PAIRS, export_pairs, export_seeds
from genalign.demo.models import BASE, Models
from genalign.demo.votes import Votes
from genalign.evaluation.report import training
from genalign.files.atomic import replace_file
from genalign.method.pairs import Reproducible
from genalign.run.recipe import RECIPE, load_recipe
from genalign.training.metrics import METRICS, read_rows
from genalign.types import UsageError

State = Literal["training", "stopped", "finished"]
PROCESS, LOG = "process.json", "train.log"
FLOW_DPO = "image-flow-dpo"  # the recipe of the latter
MOST_STEPS = 1000
EVALUATED = 128  # held-out prompts of the evaluation at the end
PATIENCE, GLANCE = 10.0, 0.1  # seconds that a process has to end, and between two looks at it
LOOKS, WATCHED, NO_BETTER = 12, 48, 4  # at the judge while it trains; on how many prompts; how many end a run


@dataclass(frozen=True)
class Training:
    """A run on votes, as its folder tells. said: the last line of its log."""

    run: Path
    state: State
    step: int
    steps: int
    said: str = ""


class Alignment:
    """The trainings that pages start, on votes above all; any page reads their state from their run folders.

    evaluated: prompts of the evaluation at the end.
    """

    def __init__(self, models: Models, votes: Votes, evaluated: int = EVALUATED) -> None:
        self.models, self.votes, self.evaluated = models, votes, evaluated
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}
        self._begun: set[Path] = set()  # runs whose process was seen to hold its folder: it trains while it does

    def methods(self) -> list[str]:
        """Those that the page's recipe can be trained by on votes."""
        own = self.models.recipe.method.name
        same = load_recipe(FLOW_DPO).policy.model == self.models.recipe.policy.model
        return [*([own] if own in ("d3po", "dpo") else []), *(["flow-dpo"] if same else [])]

    def start(self, method: str, steps: float, begin: str = BASE) -> Path:
        """Train on all votes in a new run folder; returns it.

        begin: the base, or a run whose adapter is merged first and whose samples the votes are then about.

        Raises:
            GenalignError: no vote fits, a training goes on already, or a setting that cannot be.
        """
        if not 1 <= steps <= MOST_STEPS:
            raise UsageError(f"{steps:g} steps are wanted; ask for 1 to {MOST_STEPS}")
        if method not in self.methods():
            raise UsageError(
                f"recipe {self.models.recipe.name} is not trained by {method!r} on votes; take d3po or dpo"
            )
        self._check_idle()
        run = self._new_folder("votes-")
        try:
            words = self._recipe(method, run, begin)
        except Exception:
            shutil.rmtree(run)
            raise
        self._launch([*words, *self._schedule(int(steps)), "--out", str(run)], run)
        return run

    def run_again(self, words: Sequence[str]) -> Path:
        """Start `genalign train` with these words in a new run folder; returns it.

        Raises:
            UsageError: a training goes on already, or the folder cannot be written.
        """
        self._check_idle()
        run = self._new_folder("again-")
        self._launch([*words, "--out", str(run)], run)
        return run

    def _check_idle(self) -> None:
        if running := [one.run.name for one in self.all() if one.state == "training"]:
            raise UsageError(f"{running[0]} still trains; wait for it, or stop it")

    def _new_folder(self, prefix: str) -> Path:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for number in range(1, 100):
            run = self.models.runs / f"{prefix}{stamp}{'' if number == 1 else f'-{number}'}"
            try:
                run.mkdir(parents=True)
                return run.resolve()
            except FileExistsError:
                continue
            except OSError as error:
                raise UsageError(f"cannot write runs to {self.models.runs} ({error.strerror})") from error
        raise UsageError("too many trainings began in one second; try again")

    def _recipe(self, method: str, run: Path, begin: str) -> list[str]:
        """The recipe and the overrides by which the votes are its data, which are written to the run folder."""
        if method == "flow-dpo":
            count = export_pairs(self.votes, run)
            words = [FLOW_DPO]
        else:
            count = self.labelled_seeds(run / PAIRS, begin)
            words = [*self.models.words, f"method.pairs={run / PAIRS}"]
        together = min(count, self.models.recipe.data.prompts_per_step)
        given = ["reward=null", f"data.prompts={run / PAIRS}", f"data.prompts_per_step={together}"]
        return [*words, *given, *self.models.merging(begin)]

    def labelled_seeds(self, path: Path, begin: str = BASE) -> int:
        """Write the votes on samples of the base, or of a run, as `method.pairs` reads them, and return how many.

        Raises:
            GenalignError: none is about samples of this model, or it cannot draw a sample again.
        """
        with self.models.drawing(begin, begin != BASE) as source:
            policy = source.policy
            if not isinstance(policy, Reproducible):
                raise UsageError("this model cannot draw a sample again from its seed; take an image model")
            return export_seeds(self.votes, path, policy.digest())

    def _schedule(self, steps: int) -> list[str]:
        """The overrides for so many steps; where there is a judge, it looks at prompts that the evaluation leaves out,
        and the run ends with the checkpoint that it liked best: few votes are soon learnt by heart."""
        recipe, every = self.models.recipe, max(1, steps // LOOKS)
        words = [f"train.steps={steps}", f"train.sample_every={max(1, steps // 4)}", f"train.checkpoint_every={every}"]
        if recipe.eval is not None and self.models.built.held_out:
            words.append(f"eval.count={min(self.evaluated, recipe.eval.count)}")
            watched = {} if recipe.train.monitor is None else recipe.train.monitor.model_dump(exclude_unset=True)
            own = {"count": WATCHED, "patience": NO_BETTER} | watched | {"every": every, "stop": "peak"}
            words += [f"train.monitor={json.dumps(own)}", f"train.keep_checkpoints={own['patience'] + 2}"]
        elif recipe.eval is not None and not recipe.eval.rewards:
            words.append("eval=null")  # it would measure the training reward alone, and votes are in its place
        return words

    def resume(self, name: str) -> None:
        """Go on with a run that was stopped, from its last checkpoint.

        Raises:
            UsageError: there is no such run, or it trains or is finished.
        """
        found = self.state(name)
        if found.state != "stopped":
            raise UsageError(f"{name} is {found.state}; only a stopped run goes on")
        if not (found.run / RECIPE).is_file():
            raise UsageError(f"{name} ended before it began; start a new training")
        self._launch([str(found.run / RECIPE), "--resume", str(found.run)], found.run)

    def stop(self, name: str) -> None:
        """End the process of a run; what it has written stays, and `resume` goes on from its last checkpoint.

        Raises:
            UsageError: there is no such run, or it does not train.
        """
        found = self.state(name)
        if found.state != "training":
            raise UsageError(f"{name} is {found.state}; there is nothing to stop")
        process = self._processes.get(found.run)
        number = process.pid if process is not None and process.poll() is None else _process(found.run)
        for ending in (signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(number, ending)  # it leads a group of its own, workers of rewards among them
            for _ in range(round(PATIENCE / GLANCE)):
                if self._read(found.run).state != "training":
                    return
                time.sleep(GLANCE)

    def _launch(self, words: Sequence[str], run: Path) -> None:
        command = [sys.executable, "-m", "genalign", "train", *words]
        with (run / LOG).open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._processes[run] = process
        self._begun.discard(run)
        replace_file(run / PROCESS, json.dumps({"pid": process.pid}))

    # ---- what they are at --------------------------------------------------------------------------------------------

    def all(self) -> list[Training]:
        """Every run that a page started, the newest first."""
        folders = [path.parent.resolve() for path in self.models.runs.glob(f"*/{PROCESS}")]
        return [self._read(run) for run in sorted(folders, key=lambda run: -run.stat().st_ctime)]

    def state(self, name: str) -> Training:
        """Raises UsageError where there is no such run."""
        for found in self.all():
            if found.run.name == name:
                return found
        raise UsageError(f"there is no training {name!r}; choose one of the list")

    def _read(self, run: Path) -> Training:
        rows = read_rows(run / METRICS)
        step = int(rows[-1]["step"]) if rows else 0
        process = self._processes.get(run)
        locked = _locked(run)
        if locked:
            self._begun.add(run)
        starting = process is not None and process.poll() is None and run not in self._begun
        alive = locked or starting
        finished = not alive and (run / "README.md").is_file()  # the model card: the last thing that a run writes
        lines = (run / LOG).read_text(encoding="utf-8", errors="replace").splitlines() if (run / LOG).is_file() else []
        said = next((line for line in reversed(lines) if line.startswith("genalign: ")), "")
        steps = load_recipe(run / RECIPE).train.steps if (run / RECIPE).is_file() else 0
        state: State = "training" if alive else "finished" if finished else "stopped"
        return Training(run, state, step, steps, said.removeprefix("genalign: ") if state == "stopped" else "")


def _locked(run: Path) -> bool:
    """Whether a process trains in the folder: it holds a lock of it until it ends, however it ends."""
    folder = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(folder, fcntl.LOCK_UN)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(folder)


def _process(run: Path) -> int | None:
    """The number of the process that trains in a folder whose lock is held."""
    try:
        return int(json.loads((run / PROCESS).read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- as HTML --------------------------------------------------------------------------------------------------------


def progress(found: Training) -> str:
    """How far a training is, its curves, and its newest grid of base beside tuned samples."""
    rows = read_rows(found.run / METRICS)
    times = [row["step_time"] for row in rows if "step_time" in row]
    left = round(sum(times) / len(times) * (found.steps - found.step)) if times and found.state == "training" else 0
    done = found.step / found.steps if found.steps else 0.0
    said = f"{found.run.name}: {found.state}, step {found.step} of {found.steps}"
    if found.state == "training" and not found.step:
        said = f"{found.run.name} is starting"
    if found.state == "training" and found.step == found.steps and found.steps:
        said += ", evaluating"
    elif found.state == "finished" and found.step < found.steps:
        done, said = 1.0, f"{found.run.name}: finished early, at step {found.step} of {found.steps}"
    elif left:
        said += f", {left // 60}:{left % 60:02d} left"
    parts = [markup.progress(done, said)]
    if found.said:
        parts.append(markup.note(markup.FOLDERS.sub("", found.said), "error"))
    if rows:
        parts.append(f'<div class="report">{training(rows)}</div>')
    if grids := sorted(found.run.glob("samples/step-*/grid.png"), key=lambda path: int(path.parent.name[5:])):
        parts.append(f'<div class="report"><h2>Base beside tuned, {grids[-1].parent.name}</h2>')
        parts.append(f"{markup.element(grids[-1], 'image', 'base beside tuned at the same seeds')}</div>")
    return "".join(parts)
