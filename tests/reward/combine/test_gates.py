"""Cascades, gates and products against loops in float64, and their invariants."""

from __future__ import annotations

import math

import pytest

from genalign.reward import (
    Cascade,
    Ensemble,
    Gate,
    Min,
    Product,
    Sharpness,
)
from tests.helpers.scoring import parts, score, total
from tests.helpers.toy_rewards import images, prompts, says, table

NAN = math.nan


def test_a_cascade_is_the_loop() -> None:
    columns = table(60, 3, seed=3)
    gates = (0.4, 0.6, None)
    reward = Cascade(list(zip(parts(*columns.T.tolist()), gates, strict=True)))
    for row, found in zip(columns.tolist(), total(reward, 60), strict=True):
        expected = row[0] + (row[1] + (row[2] if row[1] >= 0.6 else 0) if row[0] >= 0.4 else 0)
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_gated_row_does_not_know_the_lower_part_and_lies_below_every_row_that_passes() -> None:
    """Invariant 22."""
    high = [0.2, 0.49, 0.5, 0.9, 0.1, None, NAN]
    for low in ([5.0, 0.0, 0.0, 1.0, None, 1.0, 1.0], [0.0, 9.0, 3.0, 0.0, NAN, NAN, None]):
        scores = score(Gate(*parts(high, low)), 7)
        assert scores.total[[0, 1, 4]].tolist() == pytest.approx([0.2, 0.49, 0.1])
        assert scores.total[[2, 3]].min() >= 0.5 > scores.total[[0, 1, 4]].max()
        assert scores.total_valid.tolist() == [True] * 5 + [False] * 2
        assert scores.failed[:, 0].tolist() == [False] * 6 + [True]
    passing = score(Gate(*parts([0.9, 0.9], [None, NAN])), 2)
    assert passing.total_valid.tolist() == [False, False]
    assert passing.failed[:, 0].tolist() == [False, True]


def test_confidence_is_that_of_what_counted() -> None:
    high, low = says((0.2, 0.9), (0.9, 0.8), name="high"), says((1.0, 0.1), (1.0, 0.3), name="low")
    told = {kind: score(kind, 2).confidence for kind in (Gate(high, low), Min([high, low]))}
    gated, least = told.values()
    assert gated is not None
    assert least is not None
    assert gated[:, 0].tolist() == pytest.approx([0.9, 0.3])
    assert least[:, 0].tolist() == pytest.approx([0.1, 0.3])
    heard = score(Ensemble([high, says(None, (1.0, 0.5), name="other")]), 2).confidence
    assert heard is not None
    assert heard[:, 0].tolist() == pytest.approx([0.9, 0.5])
    assert Min([Sharpness()])(prompts(2), images(2)).confidence is None


def test_a_product_of_penalties_cannot_be_bought_back() -> None:
    main, *factors = parts([2.0, 2.0, 9.0, 0.0], [0.5, 1.0, -3.0, 1.0], [0.5, 7.0, 1.0, 1.0])
    assert total(Product(main, factors), 4) == pytest.approx([0.5, 2.0, 0.0, 0.0])
    assert total(Product(main, factors[0]), 4) == pytest.approx([1.0, 2.0, 0.0, 0.0])
