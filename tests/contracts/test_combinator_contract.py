"""One contract for every combinator: what a failure, an abstention, another order of rows and an update may change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from genalign.method.losses import advantages
from genalign.reward import (
    KRC,
    Cascade,
    Conditioned,
    Constraint,
    DynamicWeights,
    Ensemble,
    FunctionReward,
    Gate,
    Geometric,
    Harmonic,
    Hybrid,
    MarginalGain,
    Min,
    Pareto,
    Pick,
    Product,
    Repeat,
    Runner,
    Schedule,
    Shape,
    Sum,
)
from genalign.types import Media, Reward, Scores, Track, UsageError
from tests.helpers.toy_rewards import prompts, says, table, texts

NAN = math.nan
Rows = list[Any]

EVERY = {
    "sum": lambda a, b: Sum([a, b]),
    "hybrid": lambda a, b: Hybrid(a, b, "stratified", threshold=0.0),
    "pick": lambda a, b: Pick(Geometric([a, b]), "geometric"),
    "gate": lambda a, b: Gate(a, b, at=0.05),
    "cascade": lambda a, b: Cascade([(a, 0.01), (b, None)]),
    "product": lambda a, b: Product(a, [b]),
    "geometric": lambda a, b: Geometric([a, (b, 2.0)]),
    "harmonic": lambda a, b: Harmonic([a, (b, 2.0)]),
    "krc": lambda a, b: KRC([a, b]),
    "min": lambda a, b: Min([a, b]),
    "ensemble": lambda a, b: Ensemble([a, b], "entropic", beta=0.3),
    "uwo": lambda a, b: Ensemble([a, b], "uwo"),
    "robust": lambda a, b: Ensemble([a, b], "robust"),
    "repeat": lambda a, b: Repeat(Sum([a, b]), 2),
    "shape": lambda a, b: Shape(Sum([a, b]), "sigmoid", against="running"),
    "par": lambda a, b: Shape(Sum([a, b]), "sigmoid", against="references", references="known"),
    "schedule": lambda a, b: Schedule(Sum([a, b]), {0: 0.5, 10: 1.0}),
    "constraint": lambda a, b: Sum([a, Constraint(b, at_least=0.5)]),
    "hypervolume": lambda a, b: DynamicWeights([a, b]),
    "gradient": lambda a, b: DynamicWeights([a, b], "gradient"),
    "pareto": lambda a, b: Pareto([a, b], "rank"),
    "conditioned": lambda a, b: Conditioned([a, b], "towards"),
    "marginal": lambda a, b: MarginalGain([a, (b, 2.0)]),
}
FACTS = {"known": [[0.4, 0.7]] * 8, "towards": [[1.0, 2.0]] * 8}
GROUP = [4, 4, 9, 4, 9, 9, 4, 9]


def breaks(how: str, values: list[float], row: int) -> Reward:
    """A reward that goes wrong on one row."""

    def told(media: Media, facts: list[Any]) -> list[Any]:
        rows = [fact["row"] for fact in facts]
        if how == "raises" and row in rows:
            raise RuntimeError("out of order")
        wrong = {"nan": NAN, "inf": math.inf, "confidence": (0.5, 1.5)}.get(how, 0.0)
        return [wrong if r == row else values[r] for r in rows]

    return FunctionReward(told, name="b")


def masked(reward: Reward, rows: list[int]) -> tuple[Scores, Tensor, Tensor]:
    asked = prompts(8, row=list(range(8)), **FACTS)
    group = torch.tensor(GROUP)[rows]
    scores = Runner(reward, max_failure=1.0)([asked[i] for i in rows], texts(*["x"] * len(rows)), group)
    advantage, counted, _ = advantages(scores, group)
    return scores, advantage, counted


@pytest.mark.parametrize("how", ["nan", "inf", "confidence", "raises"])
@pytest.mark.parametrize("name", EVERY)
def test_a_failure_masks_its_row_and_leaves_the_siblings_advantages_alone(name: str, how: str) -> None:
    """Invariants 15, 16."""
    a, b = table(8, 2).T.tolist()
    scores, advantage, counted = masked(EVERY[name](says(*a, name="a"), breaks(how, b, 3)), list(range(8)))
    others = [i for i in range(8) if i != 3]
    _, expected, _ = masked(EVERY[name](says(*a, name="a"), says(*b, name="b")), others)
    assert scores.total_valid.tolist() == [i != 3 for i in range(8)]
    assert scores.failed[3].any()
    assert not scores.failed[others].any()
    assert advantage[3] == 0
    assert not counted[3]
    torch.testing.assert_close(advantage[others], expected)
    assert expected.abs().max() > 0
    assert scores.info["error"][3]
    assert torch.isfinite(scores.values).all()


@pytest.mark.parametrize("result", [[0.5], "nothing", [[0.5, 0.5, 0.5]] * 8])
def test_a_part_that_cannot_be_read_at_all_masks_every_row_it_counts_for(result: Any) -> None:
    broken = FunctionReward(lambda media: result, name="b")
    high = [0.9, 0.1, 0.8, 0.7, 0.2, 0.3, 0.6, 0.1]
    gate = masked(Gate(says(*high, name="a"), broken), list(range(8)))[0]
    assert gate.total_valid.tolist() == [h < 0.5 for h in high]
    for name in ("sum", "geometric", "ensemble", "shape", "constraint", "pareto"):
        scores, advantage, _ = masked(EVERY[name](says(*high, name="a"), broken), list(range(8)))
        assert not scores.total_valid.any()
        assert not advantage.any()


@pytest.mark.parametrize("name", EVERY)
def test_when_a_part_abstains_everywhere_nothing_has_failed(name: str) -> None:
    a = table(8, 1)[:, 0].tolist()
    scores, advantage, _ = masked(EVERY[name](says(*a, name="a"), says(*[None] * 8, name="b")), list(range(8)))
    assert not scores.failed.any()
    assert torch.isfinite(advantage).all()
    stands_alone = {"sum", "hybrid", "ensemble", "uwo", "robust", "repeat", "shape", "par", "schedule", "constraint"}
    assert scores.total_valid.tolist() == [name in stands_alone] * 8


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_rows_changes_nothing(name: str) -> None:
    a, b = table(8, 2, seed=1).T.tolist()
    reward = EVERY[name](says(*a, name="a"), says(*b, name="b"))
    order = [6, 3, 0, 7, 2, 5, 1, 4]
    straight, mixed = masked(reward, list(range(8)))[0], masked(reward, order)[0]
    torch.testing.assert_close(mixed.total, straight.total[order])
    torch.testing.assert_close(mixed.values, straight.values[order])


@pytest.mark.parametrize("name", EVERY)
def test_only_update_changes_state_in_any_order_of_rows_and_it_round_trips(name: str) -> None:
    """Invariants 26, 29."""
    a, b = table(8, 2, seed=2).T.tolist()

    def build() -> Reward:
        inner = EVERY[name](says(*a, name="a"), says(*b, name="b"))
        return Runner(Sum([(inner, 2.0), says(*a, name="c")], name="outer"))  # state passes through nesting

    one, two, fresh = build(), build(), build()
    before = {key: value.clone() for key, value in one.state_dict().items()}
    scores = masked(one, list(range(8)))[0]
    masked(one, list(range(8)))
    assert_same(one.state_dict(), before)
    one.update(scores, 0)
    two.update(scores.select([6, 3, 0, 7, 2, 5, 1, 4]), 0)
    assert_same(two.state_dict(), one.state_dict())
    stateful = {"shape", "schedule", "constraint", "hypervolume", "gradient"}
    assert bool(before) == (name in stateful)
    assert any(not torch.equal(value, before[key]) for key, value in one.state_dict().items()) == (name in stateful)
    fresh.load_state_dict(load(save(dict(one.state_dict()))))  # as a checkpoint holds it
    assert_same(fresh.state_dict(), one.state_dict())
    assert torch.equal(masked(fresh, list(range(8)))[0].total, masked(one, list(range(8)))[0].total)
    if before:
        with pytest.raises(UsageError, match="lacks"):
            fresh.load_state_dict({})


def assert_same(state: Any, other: Any) -> None:
    assert state.keys() == other.keys()
    for key, value in state.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", EVERY)
def test_it_is_a_reward_whose_columns_are_what_it_says(name: str) -> None:
    reward = EVERY[name](says(*[0.5] * 8, name="a"), says(*[0.25] * 8, name="b"))
    assert isinstance(reward, Reward)
    scores = masked(reward, list(range(8)))[0]
    assert scores.names == reward.aspects
    assert scores.weights.tolist() == list(reward.weights)  # type: ignore[attr-defined]
    for named in (says(*[0.5] * 8, name="a"), says(*[0.5] * 8, name="other")):
        same = EVERY[name](named, says(*[0.25] * 8, name="b")).version == reward.version
        assert same == (named.name == "a")


def light(scale: float, name: str) -> Reward:
    def told(image: Tensor) -> Tensor:
        return 0.2 + scale * image.mean((1, 2, 3))

    return FunctionReward(told, name=name, differentiable=True)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("pareto", "hybrid")])
def test_gradients_flow_to_the_pixels_and_are_the_finite_difference(name: str) -> None:
    """Invariant 11."""
    reward = EVERY[name](light(0.5, "a"), light(0.3, "b"))
    assert reward.differentiable
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    asked = prompts(2, known=FACTS["known"][:2], towards=FACTS["towards"][:2])

    def value(x: Tensor) -> Tensor:
        return reward(asked, Media(image=Track(x)), torch.tensor([0, 1])).total.sum()

    (gradient,) = torch.autograd.grad(value(pixels), pixels)
    step = 1e-2 * torch.ones_like(pixels)
    difference = (value(pixels.detach() + step) - value(pixels.detach() - step)).item()
    assert (2 * gradient * step).sum().item() == pytest.approx(difference, rel=2e-2)
    assert difference > 0


def test_pareto_is_not_differentiable() -> None:
    assert not Pareto([light(0.5, "a"), light(0.3, "b")]).differentiable
