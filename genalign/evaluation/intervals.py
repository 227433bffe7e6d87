"""Paired differences and their bootstrap interval."""

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
    picks = np.random.default_rng(0).integers(0, len(delta), size=(draws, len(delta)))  # (draws, N)
    low, high = np.percentile(delta[picks].mean(axis=1), [2.5, 97.5])
    return {
        "before": float(before[both].mean()),
        "after": float(after[both].mean()),
        "delta": float(delta.mean()),
        "ci95": [float(low), float(high)],
    }
