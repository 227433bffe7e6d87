"""Ensembles and repeated passes against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.special import logsumexp

from genalign.reward import (
    Ensemble,
    FunctionReward,
    Geometric,
    Hybrid,
    Min,
    Repeat,
    Runner,
    Shape,
    Sum,
)
from genalign.reward.combine.ensemble import entropic
from genalign.types import Media, Reward
from tests.helpers.scoring import parts, score, total
from tests.helpers.toy_rewards import prompts, says, texts

NAN = math.nan


def test_an_ensembles_risks_are_the_formulas() -> None:
    """Invariant 21."""
    columns = torch.randn(20, 5, generator=torch.Generator().manual_seed(5))
    members = parts(*columns.T.tolist())
    rows = columns.double()
    variance = rows.var(1, correction=0)
    expected = {
        ("mean", 1.0): rows.mean(1),
        ("min", 1.0): rows.amin(1),
        ("uwo", 0.7): rows.mean(1) - 0.7 * variance,
        ("entropic", 0.7): torch.from_numpy(-0.7 * (logsumexp(-rows.numpy() / 0.7, axis=1) - math.log(5))),
        ("robust", 0.7): 0.7 * rows.mean(1) + 0.3 * rows.amin(1),  # all equally sure
    }
    for (risk, strength), value in expected.items():
        told = score(Ensemble(members, risk, beta=strength, penalty=strength, nominal=strength), 20)  # type: ignore[arg-type]
        torch.testing.assert_close(told.total.double(), value, rtol=1e-5, atol=1e-6)
        assert told.std is not None
        torch.testing.assert_close(told.std[:, 0].double(), variance.sqrt(), rtol=1e-5, atol=1e-6)


def test_entropic_risk_goes_from_the_least_to_the_mean() -> None:
    """Invariant 21."""
    values = torch.randn(30, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    all_of = torch.ones_like(values, dtype=torch.bool)
    betas = [1e-4, 1e-2, 0.1, 1.0, 10.0, 1e3, 1e6]
    risks = [entropic(values, all_of, beta) for beta in betas]
    for lower, higher in pairwise(risks):
        assert (lower <= higher + 1e-12).all()
    assert (risks[0] >= values.amin(1) - 1e-12).all()
    assert (risks[-1] <= values.mean(1) + 1e-12).all()
    assert ((risks[0] - values.amin(1)) <= 1e-4 * math.log(5) + 1e-12).all()
    second_order = values.mean(1) - values.var(1, correction=0) / (2 * 1e3)
    torch.testing.assert_close(risks[5], second_order, atol=1e-6, rtol=0)
    torch.testing.assert_close(entropic(values + 7, all_of, 0.1), risks[2] + 7)
    torch.testing.assert_close(entropic(values[:, :1], all_of[:, :1], 0.1), values[:, 0])
    assert torch.autograd.gradcheck(lambda x: entropic(x, all_of[:4], 0.5), values[:4].clone().requires_grad_())
    narrow = entropic(values.float(), all_of, 1e3).double()
    torch.testing.assert_close(narrow, second_order, atol=1e-6, rtol=1e-6)  # fp32 in, no digits lost


def test_silent_members_leave_their_row_and_the_surest_is_the_nominal_one() -> None:
    members = parts([1.0, None, None, NAN], [3.0, 4.0, None, 1.0], [8.0, 6.0, None, 1.0])
    scores = score(Ensemble(members, "mean"), 4)
    assert scores.total[:2].tolist() == [4.0, 5.0]
    assert scores.total_valid.tolist() == [True, True, False, False]
    assert scores.failed[:, 0].tolist() == [False, False, False, True]
    sure = parts([(1.0, 0.5), (1.0, 0.9)], [(3.0, 0.8), (3.0, 0.1)])
    assert total(Ensemble(sure, "robust", nominal=0.25), 2) == pytest.approx([0.25 * 3 + 0.75, 1.0])


def test_the_spread_of_an_ensemble_survives_nesting() -> None:
    pair = Ensemble(parts([1.0, 2.0], [3.0, 2.0]))
    for outer in (Sum([(pair, 2.0), says(0.0, 0.0, name="other")]), Shape(pair, "tanh"), Hybrid(pair, says(0.0, 0.0))):
        scores = Runner(outer)(prompts(2, row=[0, 1]), texts("x", "y"))
        assert scores.std is not None
        assert scores.std[:, scores.names.index("ensemble")].tolist() == [1.0, 0.0]
        assert scores.std.sum() == 1.0


def test_repeat_averages_passes_and_keeps_their_std() -> None:
    passes = iter([[1.0, 2.0, None, NAN], [3.0, None, None, NAN], [8.0, 4.0, None, None]])

    def judge(media: Media, group: list[int]) -> Any:
        return next(passes)

    scores = score(Repeat(FunctionReward(judge), 3), 4)
    assert scores.total.tolist() == [4.0, 3.0, 0.0, 0.0]
    assert scores.total_valid.tolist() == [True, True, False, False]
    assert scores.failed[:, 0].tolist() == [False, False, False, True]
    assert scores.std is not None
    assert scores.std[:2, 0].tolist() == pytest.approx([torch.tensor([1.0, 3, 8]).std(correction=0).item(), 1.0])


def test_a_repeated_mean_of_aspects_is_averaged_last() -> None:
    """EditScore's two orders: sqrt(min(f, c) q) of each pass, then the mean; not the root of means, which loses c."""
    told = {"f": [0.9, 0.1], "c": [0.2, 0.8], "q": [0.4, 0.9]}

    def aspect(name: str) -> Reward:
        passes = iter(told[name])
        return FunctionReward(lambda media, group: [next(passes)] * media.rows, name=name)

    reward = Repeat(Geometric([Min([aspect("f"), aspect("c")]), aspect("q")]), 2)
    each = [math.sqrt(min(f, c) * q) for f, c, q in zip(told["f"], told["c"], told["q"], strict=True)]
    assert total(reward, 1) == pytest.approx([sum(each) / 2], abs=1e-5)
    assert sum(each) / 2 != pytest.approx(math.sqrt(0.5 * 0.65), abs=1e-2)
