"""Means of rewards: their order, their gradients, and the weighted harmonic mean in Python and in a reward file."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
import torch

from genalign.reward import (
    KRC,
    FunctionReward,
    Geometric,
    Harmonic,
    Min,
    Pick,
    Runner,
    Sharpness,
    build_reward,
)
from genalign.reward.combine.means import geometric
from genalign.types import UsageError
from tests.helpers.scoring import Rows, parts, score, total
from tests.helpers.toy_rewards import images, prompts, says, table, texts

NAN = math.nan


def test_means_lie_in_their_order_are_symmetric_and_equal_on_equal_parts() -> None:
    """Invariant 23."""
    columns = table(50, 3, seed=4)
    least, harmonic, middle, krc = (
        total(kind(parts(*columns.T.tolist())), 50) for kind in (Min, Harmonic, Geometric, KRC)
    )
    mean = columns.double().mean(1).tolist()
    for row, low, h, g, signed, top in zip(columns.tolist(), least, harmonic, middle, krc, mean, strict=True):
        assert low == pytest.approx(min(row))
        assert low - 1e-6 <= h <= g + 1e-6 <= top + 2e-6
        assert g == pytest.approx(math.prod(row) ** (1 / 3), abs=1e-5)
        assert signed == pytest.approx(g, abs=1e-6)
    for kind in (Min, Harmonic, Geometric, KRC):
        forward, turned = (total(kind(parts(*columns.T.tolist()[::way])), 50) for way in (1, -1))
        assert forward == pytest.approx(turned, rel=1e-5)
        assert total(kind(parts([0.3, 1.0, 0.0], [0.3, 1.0, 0.0])), 3) == pytest.approx([0.3, 1.0, 0.0], abs=1e-6)


def test_a_weight_of_all_is_the_part_itself() -> None:
    """Invariant 23."""
    a, b = table(5, 2).T.tolist()
    for kind in (Harmonic, Geometric):
        assert total(kind([(parts(a)[0], 1.0), (says(*b, name="b"), 1e-9)]), 5) == pytest.approx(a, rel=1e-5)
        with pytest.raises(UsageError, match="weights above 0"):
            kind([(parts(a)[0], 0.0)])


def test_krc_is_positive_only_where_all_are() -> None:
    """Invariant 23."""
    signs = list(product([-0.5, 0.5], repeat=3))
    found = total(KRC(parts(*map(list, zip(*signs, strict=True)))), 8)
    assert found == pytest.approx([0.5 if min(row) > 0 else -0.5 for row in signs], abs=1e-5)


def test_the_geometric_means_gradient_is_right_and_finite_at_zero() -> None:
    """Invariant 11."""
    values = torch.tensor([[0.0, 0.5], [0.3, 0.9], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: geometric(x, shares), (values.detach() + 1e-3).requires_grad_())
    (gradient,) = torch.autograd.grad(geometric(values, shares).sum(), values)
    assert gradient.isfinite().all()
    assert (gradient > 0).all()


def test_a_picked_aspect_stands_for_itself() -> None:
    def two() -> dict[str, Rows]:
        return {"a": [1.0, None, 3.0, NAN], "b": [(5.0, 0.3), (6.0, 0.4), NAN, (7.0, 0.5)]}

    both = FunctionReward(two, name="two", aspects=["a", "b"])
    scores = score(Pick(both, "b"), 4)
    assert scores.total.tolist() == [5.0, 6.0, 0.0, 7.0]
    assert scores.total_valid.tolist() == [True, True, False, True]
    assert scores.failed[:, 0].tolist() == [False, False, True, False]
    assert scores.confidence is not None
    assert scores.confidence[:, 0].tolist() == pytest.approx([0.3, 0.4, 0.0, 0.5])
    assert scores.names == ("pick", "two/a", "two/b")


def harmonic(*rows, weights=(1.0, 1.0)) -> Harmonic:
    parts = [says(*column, name=f"part{k}", needs=["facts.row"]) for k, column in enumerate(zip(*rows, strict=True))]
    return Harmonic(list(zip(parts, weights, strict=True)))


def scored(reward, count: int):
    return Runner(reward, max_failure=1.0)(prompts(count, row=list(range(count))), texts(*["x"] * count))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_it_is_the_papers_formula_and_lies_below_the_other_means(share: float):
    rows = [(0.9, 0.2), (0.5, 0.5), (0.01, 1.0), (0.7, 0.6)]
    total = scored(harmonic(*rows, weights=(2 * share, 2 * (1 - share))), 4).total
    for value, (a, b) in zip(total.tolist(), rows, strict=True):
        assert value == pytest.approx(1 / (share / a + (1 - share) / b), rel=1e-5)
        assert min(a, b) - 1e-6 <= value <= a**share * b ** (1 - share) + 1e-6 <= share * a + (1 - share) * b + 2e-6


def test_a_part_at_zero_makes_it_zero():
    total = scored(harmonic((0.0, 0.9), (-0.3, 0.9)), 2).total
    assert total.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_it_counts_where_all_parts_do_and_keeps_their_columns():
    told = scored(harmonic((0.5, 0.5), (None, 0.5), (float("nan"), 0.5)), 3)
    assert told.names == ("harmonic", "part0", "part1")
    assert told.weights.tolist() == [1.0, 0.0, 0.0]
    assert told.total_valid.tolist() == [True, False, False]
    assert told.failed[:, 0].tolist() == [False, False, True]
    assert told.values[:, 2].tolist() == pytest.approx([0.5] * 3)


def test_gradients_pass():
    one = Harmonic([(Sharpness(), 1.0), (Sharpness(half=0.05, name="other"), 3.0)])
    assert one.differentiable
    media = images(2)
    pixels = media["image"].data.requires_grad_()
    (gradient,) = torch.autograd.grad(one(prompts(2), media).total.sum(), pixels)
    assert gradient.abs().max() > 0


def test_the_form_in_a_file_builds_the_same():
    spec = {"harmonic": [{"use": "sharpness", "weight": 0.3}, {"use": "sharpness", "half": 0.1, "name": "soft"}]}
    built = build_reward(spec, Path())
    written = Harmonic([(Sharpness(), 0.3), (Sharpness(half=0.1, name="soft"), 1.0)])
    assert built.version == written.version
    assert built.aspects == ("harmonic", "sharpness", "soft")
    for wrong, message in (({"harmonic": []}, "there must be one"), ({**spec, "missing": "x"}, "no setting 'missing'")):
        with pytest.raises(UsageError, match=message):
            build_reward(wrong, Path())
    with pytest.raises(UsageError, match="weights above 0"):
        build_reward({"harmonic": [{"use": "sharpness", "weight": 0}]}, Path())
