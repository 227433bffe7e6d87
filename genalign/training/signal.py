"""Is there anything to learn from? Steps whose rewards all tie leave the weights alone, and a run of them says so.

Such a step makes no optimizer update, or updates with a gradient of exactly 0: every group's rewards are equal or
missing, no pair has a winner, or a differentiable reward is constant. The run's metrics are the only memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from genalign.ranks import rank
from genalign.training.metrics import METRICS, read_rows

PATIENCE = 5  # steps in a row without a signal, after which a warning is due
WHY = (
    "the rewards of all samples of a prompt were equal or missing, so there was nothing to prefer; look at the "
    "reward's mean and abstain_rate in metrics.jsonl, and raise method.group or the noise of sampling"
)


def warn_without_signal(logs: Iterator[dict[str, float]], run: Path) -> Iterator[dict[str, float]]:
    """The logs of `train`; the first time that `PATIENCE` steps in a row had no signal, rank 0 warns on stderr."""
    for log in logs:
        if rank() == 0 and not _has_signal(log):
            streaks = _streaks(read_rows(run / METRICS))
            if streaks[-1] == PATIENCE and max(streaks[:-1]) < PATIENCE:
                print(f"no signal in the last {PATIENCE} steps: {WHY}", file=sys.stderr)
        yield log


def lack_of_signal(run: Path) -> str:
    """A clause about a run that was warned of, or none of whose steps had a signal; else empty."""
    streaks = _streaks(read_rows(run / METRICS))
    if not streaks or max(streaks) < min(PATIENCE, len(streaks)):
        return ""
    without = sum(streak > 0 for streak in streaks)
    if without == len(streaks):
        return f"none of its {without} steps had a signal and the adapter is untrained: {WHY}"
    return f"{without} of its {len(streaks)} steps had no signal: {WHY}"


def _has_signal(log: Mapping[str, float]) -> bool:
    return log.get("grad_norm", 0.0) != 0.0


def _streaks(rows: Iterable[Mapping[str, float]]) -> list[int]:
    """For each step, how many steps in a row up to it had no signal."""
    streaks: list[int] = []
    for row in rows:
        before = streaks[-1] if streaks else 0
        streaks.append(0 if _has_signal(row) else before + 1)
    return streaks
