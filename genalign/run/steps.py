"""The steps of a run as a user sees them: a line each, grids of samples, a copy, trackers, and an end by SIGTERM."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from genalign.ranks import all_sum, rank
from genalign.run.build import Built
from genalign.run.copies import Copy
from genalign.run.finish import tuned
from genalign.run.trackers import log_samples, log_step, start_trackers
from genalign.training.loop import train
from genalign.training.metrics import METRICS, read_rows
from genalign.training.monitor import ALARM
from genalign.training.progress import Progress, save_unsaved
from genalign.training.signal import warn_without_signal
from genalign.training.stopping import until_no_better, watched
from genalign.types import EndedError

GRID_PROMPTS = 8


def run_steps(built: Built, progress: Progress, run: Path, copy: Copy | None = None) -> None:
    """Train with a progress bar, one line a step, grids of samples, a copy, and the trackers that the recipe names."""
    from tqdm import tqdm

    from genalign.evaluation.report import Smoothed, log_line

    settings = built.recipe.train
    seed, count = settings.seed, built.recipe.data.prompts_per_step
    tracker = start_trackers(settings.report_to, run, built.recipe)
    first, begun = progress.step, time.perf_counter()
    smoothed = Smoothed(row["reward"] for row in read_rows(run / METRICS) if "reward" in row and row["step"] <= first)
    held_out = [reward.name for reward in built.monitor.held_out] if built.monitor is not None else []
    with (
        until_sigterm() as ended,
        tqdm(total=settings.steps, initial=first, unit="step", disable=rank() != 0 or None) as bar,
    ):
        logs = train(progress, built.method, lambda step: built.data.draw(step, count, seed), run)
        log: dict[str, float] = {}
        logs = until_no_better(progress, warn_without_signal(logs, run), run)
        for log in watched(progress, logs, run, built.monitor):
            step = int(log["step"])
            bar.update()
            if rank() == 0:
                left = round((time.perf_counter() - begun) / (step - first) * (settings.steps - step))
                line = log_line(step, settings.steps, smoothed.shown(log), held_out)
                bar.write(f"{line}  eta {left // 60}:{left % 60:02d}", file=sys.stdout)
                sys.stdout.flush()
                if tracker is not None:
                    log_step(tracker, log)
            if ended():
                save_unsaved(progress, run)
                if copy is not None:
                    copy.try_update(run)
                raise EndedError(
                    f"SIGTERM ended the run after step {step} of {settings.steps}; go on with it by --resume {run}"
                )
            if step % settings.sample_every == 0 or step == settings.steps:
                sheet = _draw_grid(built, run, step)
                if tracker is not None and rank() == 0:
                    log_samples(tracker, sheet, step)
            if copy is not None and progress.saved == step:
                copy.try_update(run)
    if progress.step < settings.steps:
        _say_where_it_ended(built, progress.step, log)
        _redraw(built, run, progress.step)
    if tracker is not None:
        tracker.end_training()


@contextmanager
def until_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the context SIGTERM does not end this process; the function that is given says whether one came, to any
    rank: all ranks ask at once. One that came after the last question ends the process at the end of the context. In a
    thread, where signals cannot be met, nothing changes."""
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number)) if main else None
    try:
        yield lambda: bool(all_sum(torch.tensor([float(len(came))])).item())
    finally:
        if main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if came:
        signal.raise_signal(signal.SIGTERM)


def _say_where_it_ended(built: Built, step: int, last: Mapping[str, float]) -> None:
    """One line about weights that were put back; last: the log of the last step, empty where none was taken."""
    stop = built.monitor.settings.stop if built.monitor is not None else False
    why, best = "the reward no longer grew", ", the best checkpoint"
    if stop == "peak" and built.monitor is not None:
        why = f"the held-out {built.monitor.held_out[0].name} was best at step {step}"
    elif stop and ALARM in last:
        why, best = "the reward was hacked", ""
    if rank() == 0:
        print(f"{why}: the weights are those of step {step}{best}")


def _redraw(built: Built, run: Path, step: int) -> None:
    """The grid of weights that were put back is the run's last: those of later ones go."""
    if rank() == 0:
        for grid in run.glob("samples/step-*"):
            if int(grid.name.removeprefix("step-")) > step:
                shutil.rmtree(grid)
    _draw_grid(built, run, step)


def _draw_grid(built: Built, run: Path, step: int) -> Path | None:
    """The sheet that rank 0 wrote; None elsewhere, or where nothing could be shown."""
    if rank() != 0:
        return None
    from genalign.media.sheet import sample_grid

    prompts, settings = list(built.eval_prompts or built.prompts_to_sample)[:GRID_PROMPTS], built.recipe.eval
    # as many denoising steps as the evaluation takes, not as training does
    steps = settings.steps if settings and built.policy.guided else None
    path = run / "samples" / f"step-{step}" / "grid.png"
    return sample_grid(built.policy, prompts, [0], path, steps=steps, tuned=tuned(built.recipe))
