"""Several objectives: fronts, directions, shares, and weights that move while training."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from genalign.reward import (
    Conditioned,
    DynamicWeights,
    MarginalGain,
    Pareto,
)
from genalign.reward.combine.objectives import hypervolume, mirror_ascent, shapley_of_maximum
from tests.helpers.scoring import parts, score, total
from tests.helpers.toy_rewards import says, table

NAN = math.nan


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
