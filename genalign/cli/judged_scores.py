"""Every judged sample scored by a reward, siblings together; and what had no score, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genalign.data.judged import Comparisons
from genalign.reward import Runner
from genalign.reward.base import CUT
from genalign.types import Reward

BIASES = ("position_bias", "order_flips")  # what judges of several samples at once report of their answers
Sample = tuple[int, str]  # an item, and whose taste it is judged by


@dataclass
class Scored:
    """columns: name -> (M,) scores, NaN where one may not be read; "total" among them. failed (M,) bool. errors: why,
    and how often. cut: head -> samples of whose text it saw only the beginning."""

    columns: dict[str, np.ndarray]
    failed: np.ndarray
    errors: Counter[str]
    cut: Counter[str]

    def faults(self) -> Iterator[dict[str, Any]]:
        """What went wrong, as rows of `report`."""
        absent = ~np.isfinite(self.columns["total"])
        if absent.any():
            failed = int((absent & self.failed).sum())
            count = int(absent.sum())
            yield {"unscored": count, "samples": len(absent), "abstained": count - failed, "failed": failed}
        for error, count in self.errors.most_common():
            yield {"error": error, "samples": count}
        for head, count in self.cut.most_common():
            yield {"truncated": head, "samples": count}


def score_all(reward: Reward, found: Comparisons, samples: Sequence[Sample], size: int) -> Scored:
    """Score every sample; siblings are scored together."""
    runner, count = Runner(reward, max_failure=1.0), len(samples)
    columns = {name: np.full(count, np.nan) for name in (*reward.aspects, "total")}
    scored = Scored(columns, np.zeros(count, bool), Counter(), Counter())
    order = sorted(range(count), key=lambda k: group_of(found, samples[k][0]))
    for rows in batches(found, samples, order, count if reward.looks_at == "batch" else found.at_once(size)):
        prompts, media = found.load([samples[k][0] for k in rows], [samples[k][1] for k in rows])
        group = torch.tensor([group_of(found, samples[k][0]) for k in rows])
        with torch.no_grad():
            scores = runner(prompts, media, group)
        for k, name in enumerate(scores.names):
            columns[name][rows] = np.where(scores.valid[:, k], scores.values[:, k].double(), np.nan)
        columns["total"][rows] = np.where(scores.total_valid, scores.total.double(), np.nan)
        scored.failed[rows] = scores.failed.any(1).numpy()
        scored.errors.update(error for error in scores.info.get("error", ()) if error)
        for name in BIASES:
            if name in scores.info:
                values = [np.nan if value is None else float(value) for value in scores.info[name]]
                columns.setdefault(name, np.full(count, np.nan))[rows] = values
        for name, cut in scores.info.items():
            if name.startswith(CUT):
                scored.cut.update({name.removeprefix(CUT): sum(bool(row) for row in cut)})
    scored.cut = +scored.cut  # without heads that cut nothing
    return scored


def samples_of(found: Comparisons, personal: bool) -> list[Sample]:
    """What must be scored: every item, for a personal reward once for each user who judged it."""
    if not personal:
        return [(place, "") for place in range(len(found.items))]
    judged: dict[Sample, None] = {}
    for pair in found.pairs:
        judged |= dict.fromkeys(((pair.a, pair.user), (pair.b, pair.user)))
    return list(judged)


def group_of(found: Comparisons, place: int) -> int:
    item = found.items[place]
    return found.group((item.prompt, "" if item.picture is None else str(item.picture)))


def batches(found: Comparisons, samples: Sequence[Sample], order: Sequence[int], size: int) -> Iterator[list[int]]:
    """Rows in batches of at least `size`, none of which parts siblings."""
    rows: list[int] = []
    for k in order:
        if len(rows) >= size and group_of(found, samples[k][0]) != group_of(found, samples[rows[-1]][0]):
            yield rows
            rows = []
        rows.append(k)
    if rows:
        yield rows
