"""Shapes about given numbers, references and the last scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from genalign.reward import FunctionReward, Shape, Sum
from genalign.types import Reward
from tests.helpers.scoring import score
from tests.helpers.toy_rewards import prompts, says, texts


def told(reward: Reward, count: int, **facts: list[Any]) -> list[float]:
    return score(reward, count, **facts).total.tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


RAW = [-2.0, 0.5, 3.0, 10.0]


def test_shapes_about_given_numbers() -> None:
    z = [(r - 0.5) / 2 for r in RAW]
    part = says(*RAW, name="r")
    expected = {
        "affine": z,
        "tanh": [math.tanh(v) for v in z],
        "sigmoid": [sigmoid(v) for v in z],
        "log_sigmoid": [math.log(sigmoid(v)) for v in z],
    }
    for by, values in expected.items():
        assert told(Shape(part, by, centre=0.5, scale=2.0), 4) == pytest.approx(values, rel=1e-5)  # type: ignore[arg-type]
    assert told(Shape(part, "clip", low=-1.0, high=3.0), 4) == [-1.0, 0.5, 3.0, 3.0]
    assert told(Shape(part, "clip", high=3.0), 4) == [-2.0, 0.5, 3.0, 3.0]
    scores = score(Shape(part, "tanh"), 4)
    assert scores.names == ("shape", "raw", "r")
    assert scores.values[:, 1].tolist() == RAW


def test_par_is_the_mean_over_references_half_at_parity_and_deaf_to_a_shift() -> None:
    """Invariant 23."""
    known = [[0.0, 1.0], [0.5], [], None]
    par = Shape(says(*RAW, name="r"), "sigmoid", against="references", scale=0.5)
    scores = score(par, 4, references=known)
    assert scores.total[0].item() == pytest.approx((sigmoid(-4) + sigmoid(-6)) / 2, rel=1e-5)
    assert scores.total[1].item() == 0.5
    assert scores.total_valid.tolist() == [True, True, False, False]
    assert not scores.failed.any()
    assert scores.valid[:, 1].all()  # the raw score stands without a reference
    assert "facts.references" in par.needs
    rising = told(Shape(says(*range(-5, 6), name="r"), "sigmoid", against="references"), 11, references=[[0.3, 2]] * 11)
    assert rising == sorted(rising)
    assert 0 < rising[0] < rising[-1] < 1
    moved = Shape(says(*[r + 7 for r in RAW], name="r"), "sigmoid", against="references", scale=0.5)
    assert told(moved, 2, references=[[7.0, 8.0], [7.5]]) == pytest.approx(scores.total[:2].tolist(), rel=1e-5)
    assert told(Shape(says(3.0, name="r"), against="references"), 1, references=[[1.0, 2.0]]) == [1.5]


def test_references_that_are_texts_are_scored_by_the_part() -> None:
    def length(text: list[str]) -> list[float | None]:
        return [math.nan if t == "broken" else None if t == "mute" else float(len(t)) for t in text]

    par = Shape(FunctionReward(length), "sigmoid", against="references")
    asked = prompts(4, references=[["abc", "abcdef"], ["broken"], ["mute"], ["mute", "ab"]])
    scores = par(asked, texts("abcd", "x", "x", "ab"))
    assert scores.total.tolist() == pytest.approx([(sigmoid(1) + sigmoid(-2)) / 2, 0, 0, 0.5], rel=1e-5)
    assert scores.total_valid.tolist() == [True, False, False, True]
    assert scores.failed[:, 0].tolist() == [False, True, False, False]


@pytest.mark.parametrize("against", ["running", "range", "percentile"])
def test_running_shapes_know_the_last_scores_and_only_those(against: Any) -> None:
    rng = np.random.default_rng(0)
    shape = Shape(Sum([says(*RAW, name="r"), (says(*RAW, name="q"), 0.0)]), against=against, scale=3.0, window=12)
    seen: list[float] = []
    assert told(shape, 4) == pytest.approx([r / 3 for r in RAW])  # nothing known yet: what was set
    for step in range(5):
        fresh = rng.normal(5, 2, 4).tolist()
        part = Sum([says(*fresh, name="r"), (says(*fresh, name="q"), 0.0)])
        shape.parts = (part,)
        shape.update(score(shape, 4), step)
        seen = (seen + sorted(fresh))[-12:]
    known = np.array(seen, dtype=np.float32).astype(float)
    centre, scale = {
        "running": (known.mean(), known.std(ddof=1)),
        "range": (known.min(), known.max() - known.min()),
        "percentile": (np.percentile(known, 85), 3.0),
    }[against]
    shape.parts = (Sum([says(*RAW, name="r"), (says(*RAW, name="q"), 0.0)]),)
    assert told(shape, 4) == pytest.approx([(r - centre) / scale for r in RAW], rel=1e-5)


def test_constant_scores_have_no_scale_and_masked_ones_are_not_remembered() -> None:
    shape = Shape(says(0.7, 0.7, math.nan, None, name="r"), against="running", scale=2.0)
    shape.update(score(shape, 4), 0)
    assert shape.state["recent"].tolist() == pytest.approx([0.7, 0.7])
    assert told(shape, 1) == pytest.approx([0.0])
    assert shape.origin() == (pytest.approx(0.7), 2.0)
