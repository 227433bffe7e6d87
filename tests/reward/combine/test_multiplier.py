"""Schedules, and constraints with proxy points: what moves while training."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genalign.method.losses import advantages
from genalign.reward import Constraint, Gate, Schedule, Shape, Sum, proxy_point
from genalign.types import Scores, UsageError
from tests.helpers.scoring import score
from tests.helpers.toy_rewards import says


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---- schedules ------------------------------------------------------------------------------------------------------


def at_step(reward: Any, step: int, count: int = 1) -> Scores:
    reward.update(score(reward, count), step - 1)
    return score(reward, count)


def test_a_schedule_runs_through_its_points_and_waits_for_update() -> None:
    ramp = Schedule(says(2.0), {10: 1.0, 0: 0.0, 20: 0.5})
    held = Schedule(says(2.0), {10: 1.0, 0: 0.0, 20: 0.5}, hold=True)
    for step in (0, 3, 10, 15, 20, 99):
        expected = float(np.interp(step, [0, 10, 20], [0.0, 1.0, 0.5]))
        assert at_step(ramp, step).total.item() == pytest.approx(2 * expected)
        assert at_step(held, step).total.item() == pytest.approx(2 * {0: 0, 3: 0, 10: 1, 15: 1}.get(step, 0.5))
    fresh = Schedule(says(2.0), {10: 1.0, 0: 0.0, 20: 0.5})
    fresh.load_state_dict(ramp.state_dict())
    assert score(fresh, 1).total.item() == 1.0


def test_thresholds_that_rise_as_vision_r1s_do() -> None:
    part = says(0.3, 0.6, 0.74, 0.75, 0.95, name="iou")
    band = Schedule(part, {0: [0.5, 0.75], 1500: [0.75, 0.9]}, "band", hold=True)
    assert at_step(band, 0, 5).total.tolist() == pytest.approx([0, 0.6, 0.74, 1, 1])
    assert at_step(band, 1500, 5).total.tolist() == pytest.approx([0, 0, 0, 0.75, 1])
    gate = Gate(Schedule(part, {0: [0.5, 0.5], 10: [0.8, 0.8]}, "band"), says(5.0, 5.0, 5.0, 5.0, 5.0))
    assert at_step(gate, 0, 5).total.tolist() == [0, 6, 6, 6, 6]
    assert at_step(gate, 10, 5).total.tolist() == [0, 0, 0, 0, 6]


def test_at_weight_zero_a_failure_masks_nothing() -> None:
    reward = Schedule(says(math.nan, 1.0), {0: 0.0, 1: 1.0})
    assert score(reward, 2).total_valid.all()
    assert at_step(reward, 1, 2).total_valid.tolist() == [False, True]


# ---- constraints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "squash"),
    [
        ({"at_least": 0.5}, sigmoid),
        ({"equal": 0.5}, math.tanh),
        ({"at_least": 0.5, "squash": "clamp"}, lambda x: min(max(x, 0.0), 1.0)),
    ],
)
def test_a_multiplier_takes_steps_of_sgd_and_weighs_what_is_missing(settings: Any, squash: Any) -> None:
    rng = np.random.default_rng(1)
    constraint = Constraint(says(0.0), **settings, rate=0.5, momentum=0.1, name="c")
    xi = velocity = 0.0
    for step in range(30):
        values = np.float32(rng.normal(0.3 if step < 15 else 0.9, 0.2, 6))
        constraint.parts = (says(*values.tolist(), name="r"),)
        scores = score(constraint, 6)
        multiplier = squash(xi)
        expected = [multiplier * (v - 0.5) for v in values.tolist()]
        assert scores.total.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        constraint.update(scores, step)
        velocity = 0.1 * velocity + float((values - np.float32(0.5)).astype(float).mean())
        xi = xi - 0.5 * velocity
        xi = min(max(xi, 0.0), 1.0) if settings.get("squash") else min(max(xi, -5.0), 5.0)
        assert constraint.multiplier == pytest.approx(squash(xi), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("demand", [{"at_least": 0.5}, {"at_most": -0.5}])
@pytest.mark.parametrize("squash", ["sigmoid", "clamp"])
def test_it_rises_while_violated_falls_when_slack_and_never_winds_up(demand: Any, squash: Any) -> None:
    """Invariant 26."""
    sign = -1.0 if "at_most" in demand else 1.0
    constraint = Constraint(says(0.0), **demand, squash=squash, rate=1.0, name="c")
    seen = [constraint.multiplier]
    for value, steps in ((0.1, 40), (0.9, 40), (0.1, 40)):
        for step in range(steps):
            constraint.parts = (says(sign * value, name="r"),)
            constraint.update(score(constraint, 1), step)
            seen.append(constraint.multiplier)
    assert all(0 <= value <= 1 for value in seen)
    assert all(b >= a for a, b in pairwise(seen[:41]))
    assert all(b <= a for a, b in pairwise(seen[42:81]))  # after one step of momentum
    assert seen[40] > 0.95
    assert seen[80] < 0.05
    assert seen[120] > 0.95  # it came back: what is bounded does not wind up
    assert squash != "clamp" or (seen[40], seen[80]) == (1.0, 0.0)


def test_an_equality_pushes_a_score_past_its_proxy_point_down() -> None:
    constraint = Constraint(says(0.9), equal=0.5, rate=1.0)
    for step in range(50):
        constraint.update(score(constraint, 1), step)
    assert constraint.multiplier < -0.9
    assert score(constraint, 1).total.item() < 0


def test_rows_without_a_score_do_not_move_the_multiplier() -> None:
    constraint = Constraint(says(0.1, None, math.nan), at_least=0.5, rate=1.0, momentum=0.0)
    constraint.update(score(constraint, 3), 0)
    assert constraint.multiplier == pytest.approx(sigmoid(0.4))
    constraint.update(score(constraint, 3).select([1, 2]), 1)
    assert constraint.multiplier == pytest.approx(sigmoid(0.4))


def test_the_rules_read_constraints_inside_a_sum() -> None:
    """Any rule but lagrangian takes l (r - theta) as a score; lagrangian mixes advantages by l, whatever the scales."""
    task, safe = [0.1, 0.5, 0.3, 0.9], [30.0, 10.0, 60.0, 20.0]
    reward = Sum([says(*task, name="task"), Constraint(says(*safe, name="s"), at_least=35.0, start=1.0, name="safe")])
    scores = score(reward, 4, [0, 0, 0, 0])
    learnt = sigmoid(1.0)
    assert scores.total.tolist() == pytest.approx([t + learnt * (s - 35) for t, s in zip(task, safe, strict=True)])

    def z(values: list[float]) -> Tensor:
        own = torch.tensor(values, dtype=torch.float64)
        return (own - own.mean()) / own.std()

    advantage, counted, _ = advantages(scores, torch.zeros(4, dtype=torch.long), "lagrangian")
    torch.testing.assert_close(advantage.double(), (1 - learnt) * z(task) + learnt * z(safe), atol=1e-6, rtol=1e-5)
    assert counted.all()


def test_the_proxy_point_is_where_the_truth_peaks() -> None:
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.uniform(0, 10, (60, 2)))
    truth = 3 - (x[:, 0] - 3.0) ** 2 - 0.5 * (x[:, 1] - 8.0) ** 2 + 0.1 * torch.from_numpy(rng.normal(size=60))
    assert proxy_point(x, truth).tolist() == pytest.approx([3.0, 8.0], abs=0.1)
    rising = torch.linspace(0, 4, 9)[:, None]
    assert proxy_point(rising, rising[:, 0]).item() == pytest.approx(4.0)  # still rising: the furthest that was seen
    with pytest.raises(UsageError, match="too few to find 2 proxy points; make 6"):
        proxy_point(x[:5], truth[:5])


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: Shape(p, "sigmod"), "no by 'sigmod'; did you mean 'sigmoid'"),
        (lambda p: Shape(p, "clip"), "needs at least one"),
        (lambda p: Shape(p, "tanh", low=0.0), "belong to 'by: clip'"),
        (lambda p: Shape(p, "clip", low=1.0, high=0.0), "low must lie below high"),
        (lambda p: Shape(p, scale=0.0), "scale of reward"),
        (lambda p: Shape(p, against="reference"), "did you mean 'references'"),
        (lambda p: Schedule(p, {}), "needs points"),
        (lambda p: Schedule(p, {0: [1.0, 2.0]}), "must be a number"),
        (lambda p: Schedule(p, {0: 1.0}, "band"), r"must be \[low, high\]"),
        (lambda p: Schedule(p, {0: [2.0, 1.0]}, "band"), "low above high"),
        (lambda p: Schedule(p, {-1: 1.0}), "a step of reward"),
        (lambda p: Constraint(p), "exactly one of at_least, at_most and equal, not 0"),
        (lambda p: Constraint(p, at_least=1.0, equal=2.0), "not 2"),
        (lambda p: Constraint(p, at_least=1.0, squash="tanh"), "no squash 'tanh'"),
        (lambda p: Constraint(p, at_least=math.nan), "at_least of reward"),
    ],
)
def test_wrong_settings_are_one_sentence(build: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build(says(1.0))
    assert "\n" not in str(caught.value)
