"""Every combinator without state: its formula against loops in float64, and its invariants."""

from __future__ import annotations

import math
from itertools import pairwise, permutations, product
from typing import Any

import pytest
import torch
from scipy.special import logsumexp

from genalign.reward import (
    KRC,
    Cascade,
    Conditioned,
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
    Shape,
    Sharpness,
    Sum,
)
from genalign.reward.combine.ensemble import entropic
from genalign.reward.combine.means import geometric
from genalign.reward.combine.objectives import shapley_of_maximum
from genalign.types import Media, Reward, Scores, UsageError
from tests.toy_rewards import images, prompts, says, table, texts

NAN = math.nan
Rows = list[Any]


def score(reward: Reward, count: int, group: list[int] | None = None, **facts: Rows) -> Scores:
    asked = prompts(count, row=list(range(count)), **facts)
    return reward(asked, texts(*["x"] * count), None if group is None else torch.tensor(group))


def parts(*columns: Rows) -> list[Reward]:
    return [says(*column, name=f"p{k}") for k, column in enumerate(columns)]


def total(reward: Reward, count: int, group: list[int] | None = None, **facts: Rows) -> list[float]:
    scores = score(reward, count, group, **facts)
    assert torch.equal(scores.values[:, 0], scores.total)
    return scores.total.tolist()


# ---- gates ----------------------------------------------------------------------------------------------------------


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


# ---- means ----------------------------------------------------------------------------------------------------------


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


# ---- ensembles ------------------------------------------------------------------------------------------------------


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


# ---- objectives -----------------------------------------------------------------------------------------------------


def test_pareto_is_brute_force_and_knows_no_scale() -> None:
    """Invariant 25."""
    columns = (table(40, 3, seed=7) * 6).round()  # with ties
    group = [i % 3 for i in range(40)]
    rows = columns.tolist()

    def beaten(i: int, alive: set[int]) -> bool:
        others = [rows[j] for j in alive if group[j] == group[i]]
        return any(all(x >= y for x, y in zip(o, rows[i], strict=True)) and o != rows[i] for o in others)

    rank, alive, level = [0] * 40, set(range(40)), 0
    while alive:
        front = {i for i in alive if not beaten(i, alive)}
        for i in front:
            rank[i] = level
        alive, level = alive - front, level + 1
    assert total(Pareto(parts(*columns.T.tolist())), 40, group) == [float(r == 0) for r in rank]
    bent = [columns[:, 0].exp().tolist(), (columns[:, 1] ** 3 - 50).tolist(), (2e-3 * columns[:, 2]).tolist()]
    assert total(Pareto(parts(*bent), "rank"), 40, group) == [-float(r) for r in rank]
    assert max(rank) > 1
    whole = Pareto(parts(*columns.T.tolist()), within="batch")
    assert whole.looks_at == "batch"
    assert total(whole, 40, group) == total(Pareto(parts(*columns.T.tolist())), 40, [0] * 40)


def test_conditioned_follows_the_prompts_direction() -> None:
    directions = [[1.0, 0.0], [3.0, 4.0], {"p1": 2.0}, None, [1.0], {"p9": 1.0}, [0.0, 0.0], [1.0, NAN]]
    reward = Conditioned(parts([0.3] * 8, [0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]))
    scores = score(reward, 8, direction=directions)
    assert scores.total[:3].tolist() == pytest.approx([0.3, 0.6 * 0.3 + 0.8 * 0.7, 0.7])
    assert scores.total_valid.tolist() == [True] * 3 + [False] * 5
    assert scores.failed[:, 0].tolist() == [False] * 4 + [True] * 4
    assert "facts.direction" in reward.needs
    angles = [-0.6 + 0.1 * k for k in range(8)]
    along = total(reward, 8, direction=[[math.cos(t), math.sin(t)] for t in angles])
    assert along == pytest.approx([0.3 * math.cos(t) + 0.7 * math.sin(t) for t in angles], abs=1e-6)
    assert total(Conditioned(parts([0.3], [0.7]), unit=False), 1, direction=[[3, 4]]) == pytest.approx([3.7])
    free = score(Conditioned(parts([0.3, 0.3], [NAN, None])), 2, direction=[[1.0, 0.0]] * 2)
    assert free.total_valid.all()  # what has no weight may be missing


def test_marginal_gain_is_the_average_over_all_orders() -> None:
    values = table(5, 3, seed=8)
    values[3] = values[1]  # a double
    expected = torch.zeros(5, dtype=torch.float64)
    orders = list(permutations(range(5)))
    for order in orders:
        covered = torch.zeros(3, dtype=torch.float64)
        for i in order:
            wider = torch.maximum(covered, values[i].double())
            expected[i] += ((wider - covered) * torch.tensor([1.0, 2.0, 1.0])).sum() / len(orders)
            covered = wider
    p = parts(*values.T.tolist())
    reward = MarginalGain([p[0], (p[1], 2.0), p[2]])
    found = torch.tensor(total(reward, 5, [3] * 5), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    whole = (values.double().amax(0) * torch.tensor([1.0, 2.0, 1.0])).sum()
    assert found.sum().item() == pytest.approx(whole.item(), rel=1e-6)  # the gains telescope
    assert found[1] == pytest.approx(found[3])
    alone = total(reward, 5, [0, 1, 2, 3, 4])
    assert alone == pytest.approx((values @ torch.tensor([1.0, 2.0, 1.0])).tolist())
    assert (torch.tensor(alone) >= found - 1e-6).all()  # diminishing returns
    assert total(MarginalGain(parts([-1.0, 0.5])), 2, [0, 0]) == [0.0, 0.5]


def test_the_share_in_a_maximum_has_the_right_gradient() -> None:
    values = table(4, 2, seed=9).double().requires_grad_()
    assert torch.autograd.gradcheck(shapley_of_maximum, values)


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda p: Cascade([]), "cascade of nothing"),
        (lambda p: Gate(p, p, at="high"), "at of reward 'gate' is 'high'"),
        (lambda p: Ensemble([]), "ensemble of nothing"),
        (lambda p: Ensemble([p], "worst"), "no risk 'worst'"),
        (lambda p: Ensemble([p], "entropic", beta=0.0), r"beta of .* must be a number in \[1e-06, inf\]"),
        (lambda p: Repeat(p, 0), "repeated 0 times"),
        (lambda p: Pareto([p]), "at least two parts"),
        (lambda p: MarginalGain([(p, -1.0)]), "weights above 0"),
        (lambda p: Conditioned([]), "no parts to weigh"),
        (lambda p: DynamicWeights([p], "gradients"), "no by 'gradients'; did you mean 'gradient'"),
        (lambda p: DynamicWeights([p], reference=[0, 1]), "1 parts, but its reference 2"),
        (lambda p: Min([p], name="says").aspects, "two columns called 'says'"),
        (lambda p: Shape(says(1.0, name="raw")).aspects, "two columns called 'raw'"),
    ],
)
def test_wrong_settings_are_one_sentence(build: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        build(says(1.0))
    assert "\n" not in str(caught.value)
