"""Paired differences and win rates, and their intervals: by the bootstrap, or exact ones."""

from __future__ import annotations

from typing import Any

import numpy as np

BOOTSTRAP_DRAWS = 2000


def compare(before: np.ndarray, after: np.ndarray, draws: int = BOOTSTRAP_DRAWS) -> dict[str, Any] | None:
    """Means of paired per-prompt values (N,), their difference and its 95% percentile interval; None without a pair.

    NaN marks a prompt for which a metric has no value. The bootstrap resamples prompts, so that a prompt's luck before
    and after stays together; its random state is fixed, so that one result has one interval.
    """
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return None
    delta = after[both] - before[both]
    return {
        "before": float(before[both].mean()),
        "after": float(after[both].mean()),
        "delta": float(delta.mean()),
        "ci95": _interval(delta, draws),
    }


def win_rate(before: np.ndarray, after: np.ndarray, draws: int = BOOTSTRAP_DRAWS) -> dict[str, Any] | None:
    """The share of prompts of which `after` is higher, half of the ties included, and its interval, as `compare`'s."""
    both = np.isfinite(before) & np.isfinite(after)
    if not both.any():
        return None
    won = (1 + np.sign(after[both] - before[both])) / 2  # (N,): 1, 0.5 of a tie, or 0
    return {"wins": float(won.mean()), "wins95": _interval(won, draws)}


def exact_win_rate(before: np.ndarray, after: np.ndarray) -> dict[str, Any] | None:
    """Of paired values (N,): `rate`, the share that `after` wins, half of the ties included; and, of the `untied`, the
    95% interval of Clopper and Pearson and `p`, that of as many wins or more by chance. None where all are tied."""
    from scipy.stats import binomtest

    both = np.isfinite(before) & np.isfinite(after)
    signs = np.sign(after[both] - before[both])
    wins, untied = int((signs > 0).sum()), int((signs != 0).sum())
    if untied == 0:
        return None
    interval = binomtest(wins, untied).proportion_ci(0.95, method="exact")
    return {
        "rate": float((1 + signs).mean() / 2),
        "untied": untied,
        "ci95": [float(interval.low), float(interval.high)],
        "p": float(binomtest(wins, untied, alternative="greater").pvalue),
    }


def _interval(values: np.ndarray, draws: int) -> list[float]:
    """The 95% percentile interval of the mean of values (N,)."""
    picks = np.random.default_rng(0).integers(0, len(values), size=(draws, len(values)))  # (draws, N)
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]
