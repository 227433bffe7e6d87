"""Precision and recall in loops and at their ends."""

import pytest
import torch

from genalign.reward.sets.neighbours import Precision, Recall
from tests.helpers.feature_sets import rows


def test_precision_and_recall_in_loops_and_at_their_ends():
    x, y = rows(40, 4, 1), 0.5 * rows(60, 4, 2) + 0.5

    def within(centres, points) -> float:
        reaches = [sorted((c - d).norm() for d in centres)[3] for c in centres]  # its own place 0 is itself
        hits = 0
        for point in points:
            hits += any((c - point).norm() <= reach for c, reach in zip(centres, reaches, strict=True))
        return hits / len(points)

    assert float(Precision(y).value(x)) == pytest.approx(within(y, x))
    assert float(Recall(y).value(x)) == pytest.approx(within(x, y))
    assert float(Precision(x).value(x)) == float(Recall(x).value(x)) == 1
    assert float(Precision(x).value(x + 100)) == float(Recall(x).value(x + 100)) == 0
    narrow = y[:1] + 1e-3 * rows(40, 4, 3)  # all good, and all the same
    assert float(Precision(y).value(narrow)) == 1
    assert float(Recall(y).value(narrow)) < 0.1
    wide = torch.cat([y, y + 50])  # everything, and as much rubbish
    assert float(Precision(y).value(wide)) == 0.5
    assert float(Recall(y).value(wide)) == 1
