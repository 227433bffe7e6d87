"""What learns or moves while training: shapes, schedules, constraints with proxy points, dynamic weights."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genalign.method.losses import advantages
from genalign.reward import Constraint, DynamicWeights, FunctionReward, Gate, Schedule, Shape, Sum, proxy_point
from genalign.reward.combine.objectives import hypervolume, mirror_ascent
from genalign.types import Reward, Scores, UsageError
from tests.toy_rewards import prompts, says, texts


def score(reward: Reward, count: int, group: list[int] | None = None, **facts: list[Any]) -> Scores:
    asked = prompts(count, row=list(range(count)), **facts)
    return reward(asked, texts(*["x"] * count), None if group is None else torch.tensor(group))


def told(reward: Reward, count: int, **facts: list[Any]) -> list[float]:
    return score(reward, count, **facts).total.tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


RAW = [-2.0, 0.5, 3.0, 10.0]


# ---- shapes ---------------------------------------------------------------------------------------------------------


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


# ---- dynamic weights ------------------------------------------------------------------------------------------------


def test_hypervolume_is_the_share_of_random_points_and_dominated_points_add_nothing() -> None:
    """Invariant 25."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    corner = torch.zeros(3, dtype=torch.float64)
    darts = torch.rand(200_000, 3, generator=generator, dtype=torch.float64)
    hit = (darts[:, None] <= points).all(2).any(1).double().mean().item()
    volume = hypervolume(points, corner)
    assert volume == pytest.approx(hit, abs=5e-3)
    for extra in (points[2] * 0.9, points[0], torch.tensor([-1.0, 9.0, 9.0]), corner):
        assert hypervolume(torch.cat([points, extra[None].double()]), corner) == pytest.approx(volume, rel=1e-12)
    assert hypervolume(torch.cat([points, points.amax(0)[None]]), corner) > volume


def test_the_hypervolume_factor_follows_the_batches_means() -> None:
    means = [(0.5, 0.4), (0.3, 0.2), (0.6, 0.4), (0.2, 0.9), (0.6, 0.4)]
    reward = DynamicWeights([says(0.0, name="a"), says(0.0, name="b")])
    kept, factor = [(0.0, 0.0)], 0.5

    def volume(points: list[tuple[float, float]]) -> float:
        area, height = 0.0, 0.0
        for x, y in sorted(points, key=lambda p: -p[0]):
            area, height = area + x * max(0.0, y - height), max(height, y)
        return area

    for step, (x, y) in enumerate(means):
        a, b = says(x - 0.1, x + 0.1, None, name="a"), says(y, y, y + 9, name="b")
        reward.parts = (a, b)
        scores = score(reward, 3)
        expected = [factor * (x - 0.1 + y) / 2, factor * (x + 0.1 + y) / 2, 0.0]
        assert scores.total.tolist() == pytest.approx(expected, rel=1e-5)
        reward.update(scores, step)
        gain = volume([*kept, (x, y)]) - volume(kept)
        factor = 0.5 + 1.5 * math.tanh(gain)
        kept += [(x, y)] if gain > 1e-9 else []
        assert gain >= 0
        assert reward.state["multiplier"].item() == pytest.approx(factor, rel=1e-5)
    assert len(kept) == 4
    torch.testing.assert_close(
        reward.state["points"], torch.tensor([[0.6, 0.4], [0.2, 0.9]]).double(), atol=1e-6, rtol=0
    )


def test_mirror_ascent_is_the_papers_step_and_stays_on_the_simplex() -> None:
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    gradients = torch.randn(3, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gram = gradients @ gradients.T
    powers = [w * math.exp(0.3 * sum(row) / 2.0) for w, row in zip(weights.tolist(), gram.tolist(), strict=True)]
    found = mirror_ascent(weights, gram, 0.3, 2.0)
    assert found.tolist() == pytest.approx([p / sum(powers) for p in powers])
    order = [2, 0, 1]
    torch.testing.assert_close(mirror_ascent(weights[order], gram[order][:, order], 0.3, 2.0), found[order])


def test_a_part_that_conflicts_within_groups_loses_weight() -> None:
    """a and b rise together among siblings and c falls; between the two prompts c rises, which teaches nothing."""
    a, b = [0.1, 0.3, 0.5, 0.1, 0.3, 0.5], [0.2, 0.3, 0.4, 0.2, 0.3, 0.4]
    c = [0.3, 0.2, 0.1, 9.3, 9.2, 9.1]
    reward = DynamicWeights([says(*a, name="a"), says(*b, name="b"), says(*c, name="c")], "gradient", rate=5.0)
    for step in range(20):
        scores = score(reward, 6, [0, 0, 0, 1, 1, 1])
        weights = reward.state["weights"]
        assert weights.sum().item() == pytest.approx(1.0)
        mixed = [sum(w * v for w, v in zip(weights.tolist(), row, strict=True)) for row in zip(a, b, c, strict=True)]
        assert scores.total.tolist() == pytest.approx(mixed, rel=1e-5)
        reward.update(scores, step)
    final = dict(zip("abc", reward.state["weights"].tolist(), strict=True))
    assert final["a"] > final["b"] > final["c"]
    assert final["c"] < 1 / 3 - 0.05


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
