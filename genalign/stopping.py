"""Early stopping: a run ends when its reward no longer grows, with the weights of its best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from genalign.checkpoint import load_checkpoint
from genalign.loop import METRICS, Progress, restore
from genalign.ranks import gather
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
    best = int(gather(torch.tensor([found or 0]))[0])  # rank 0 wrote the metrics, so its word counts
    if best:
        restore(progress, load_checkpoint(run / f"checkpoint-{best}"))
    return best > 0


def best_step(metrics: Path, every: int, patience: int, now: int) -> int | None:
    """The step of the best checkpoint, where the last `patience` ones up to `now` were no better; else None."""
    rewards: dict[int, float] = {}
    for line in metrics.read_text().splitlines() if metrics.is_file() else ():
        row = json.loads(line)
        rewards[int(row["step"])] = row.get("reward", float("nan"))
    values = []
    for end in range(every, now + 1, every):
        told = [rewards[step] for step in range(end - every + 1, end + 1) if rewards.get(step) == rewards.get(step)]
        values.append(sum(told) / len(told) if told else float("-inf"))
    if len(values) <= patience:
        return None
    best = values.index(max(values))
    return (best + 1) * every if best == len(values) - 1 - patience else None
