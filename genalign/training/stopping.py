"""Early stopping: a run ends when its reward no longer grows, or is hacked, with the weights of a better checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import isnan, nan
from pathlib import Path

import torch

from genalign.ranks import gather, rank
from genalign.training.checkpoint import load_checkpoint
from genalign.training.metrics import METRICS, amend_metrics, read_rows
from genalign.training.monitor import ALARM, PREFIX, Monitor, warning
from genalign.training.progress import Progress, restore
from genalign.types import UsageError


def until_no_better(progress: Progress, logs: Iterator[dict[str, float]], run: Path) -> Iterator[dict[str, float]]:
    """The logs of `train`, to the end or until `train.patience` checkpoints in a row were no better than the best.

    Then the best one is put back (policy, averages, optimizer, step), as in RPO (arXiv 2407.12164). A checkpoint is
    worth the mean `reward` of the `checkpoint_every` steps before it; the run's metrics are the only memory, so a
    resumed run stops where an unbroken one would have.

    Raises:
        UsageError: the best checkpoint would have been deleted by then.
    """
    settings = progress.settings
    if settings.patience is not None and settings.keep_checkpoints <= settings.patience:
        raise UsageError(
            f"train.patience {settings.patience} goes back to a checkpoint that train.keep_checkpoints "
            f"{settings.keep_checkpoints} deletes; set train.keep_checkpoints={settings.patience + 1}"
        )
    if _stopped(progress, run):
        return
    for log in logs:
        yield log
        if _stopped(progress, run):
            return


def _stopped(progress: Progress, run: Path) -> bool:
    settings = progress.settings
    if settings.patience is None or progress.step == 0 or progress.step % settings.checkpoint_every:
        return False
    found = best_step(run / METRICS, settings.checkpoint_every, settings.patience, progress.step)
    best = int(gather(torch.tensor([found or 0]))[0])  # rank 0 wrote the metrics, so its answer counts
    if best:  # by all ranks, in place
        restore(progress, load_checkpoint(run / f"checkpoint-{best}"))
    return best > 0


def best_step(metrics: Path, every: int, patience: int, now: int) -> int | None:
    """The step of the best checkpoint, where the last `patience` ones up to `now` were no better; else None."""
    # A step whose samples could not be scored has no reward, or NaN; it counts for no checkpoint.
    rewards = {int(row["step"]): row["reward"] for row in read_rows(metrics) if not isnan(row.get("reward", nan))}
    values = []
    for end in range(every, now + 1, every):
        scored = [rewards[step] for step in range(end - every + 1, end + 1) if step in rewards]
        values.append(sum(scored) / len(scored) if scored else float("-inf"))
    if len(values) <= patience:
        return None
    best = values.index(max(values))
    return (best + 1) * every if best == len(values) - 1 - patience else None


def watched(
    progress: Progress, logs: Iterator[dict[str, float]], run: Path, monitor: Monitor | None
) -> Iterator[dict[str, float]]:
    """The logs of `train`, each `every` steps with a look at held-out rewards, which also goes into the run's metrics.

    A log with `monitor/alarm` is one where the training reward has been hacked for `patience` looks; rank 0 warns on
    stderr, once. With `stop: true` the run then ends, with the newest checkpoint on disk that is not past the proxy
    point (if none is left, with the last weights). With `stop: peak` it ends after `patience` looks without a gain, and
    in any case with the checkpoint of its best look. The run's metrics are the only memory, as in `until_no_better`.
    """
    if monitor is None:
        yield from logs
        return
    stop = monitor.settings.stop
    looked_at = {log["step"] for log in _looks(run)}
    if progress.step and _is_due(progress, monitor) and progress.step not in looked_at:
        _look(progress, monitor, run, {"step": progress.step})  # killed between the checkpoint and the look
    if stop and _ended(progress, monitor, run):
        return
    for log in logs:
        due = _is_due(progress, monitor)
        if due:
            log = _look(progress, monitor, run, log)
        yield log
        if stop and due and _ended(progress, monitor, run):
            return
    best = monitor.peak(_looks(run)) if stop == "peak" else None
    _put_back(progress, run, _of_rank_0(best and best[0]))


def _is_due(progress: Progress, monitor: Monitor) -> bool:
    return progress.step % monitor.settings.every == 0 or progress.step == progress.settings.steps


def _look(progress: Progress, monitor: Monitor, run: Path, log: dict[str, float]) -> dict[str, float]:
    seen = monitor.look(progress.policy)
    earlier = [row for row in _looks(run) if row["step"] < log["step"]]
    looks = [*earlier, {**log, **seen}]
    hacked = monitor.alarm(looks)
    if _of_rank_0(hacked and hacked[0]):  # the one that has read all looks
        seen[ALARM] = 1.0
    if rank() == 0:
        written = next((row for row in read_rows(run / METRICS) if row["step"] == log["step"]), {})
        amend_metrics(run / METRICS, {**written, **log, **seen})
        if hacked is not None and monitor.proxy is not None and not any(ALARM in row for row in earlier):
            print(warning(monitor.proxy.name, hacked[1], hacked[0], looks), file=sys.stderr)
    return {**log, **seen}


def _ended(progress: Progress, monitor: Monitor, run: Path) -> bool:
    """Whether the looks end the run; then the checkpoint that they ask for is put back."""
    step = _of_rank_0(monitor.end(_looks(run)))
    _put_back(progress, run, step)
    return step > 0


def _put_back(progress: Progress, run: Path, step: int) -> None:
    """Restore the newest checkpoint on disk up to `step`; nothing where there is none, or where step is 0."""
    saved = [int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*")]
    sound = max((at for at in saved if at <= step), default=progress.step)
    if sound != progress.step:
        restore(progress, load_checkpoint(run / f"checkpoint-{sound}"))


def _of_rank_0(step: int | None) -> int:
    """A step, 0 for None: rank 0 wrote the metrics, so its answer counts."""
    return int(gather(torch.tensor([step or 0]))[0])


def _looks(run: Path) -> list[dict[str, float]]:
    return [row for row in read_rows(run / METRICS) if any(name.startswith(PREFIX) for name in row)]
