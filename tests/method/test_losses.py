"""Advantages, weights, pairs and the forward process's losses against float64 loops written out here."""

from __future__ import annotations

import inspect
import math
import textwrap
from types import SimpleNamespace

import pytest
import torch

from genalign.method.losses import (
    advantages,
    all_pairs,
    best_worst_pairs,
    dominating_pairs,
    nft_loss,
    regression_weights,
)
from tests.helpers.toy_policy import make_scores

GROUP = torch.tensor([7, 3, 7, 3, 7, 3, 7, 3])  # interleaved, and not numbered from 0


def column(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([[math.nan if v is None else v] for v in values])


def scored(table: torch.Tensor, weights: list[float] | None = None, failed: torch.Tensor | None = None):
    """Scores of a table in which NaN is an aspect that abstains."""
    return make_scores(table.nan_to_num(0.0), valid=~table.isnan(), failed=failed, weights=weights)


def unbiased(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def expected_sum_then_normalise(totals: list[float | None], group: list[int], std: str, baseline: str) -> list[float]:
    readable = [t for t in totals if t is not None]
    out = []
    for i, total in enumerate(totals):
        siblings = [t for t, g in zip(totals, group, strict=True) if g == group[i] and t is not None]
        if baseline == "batch":
            siblings = readable
        if total is None or len(siblings) < 2 or unbiased(siblings) <= 2**-20 * max(abs(s) for s in siblings):
            out.append(0.0)
            continue
        others = list(siblings)
        if baseline == "leave_one_out":
            others.remove(total)
        scale = {"group": unbiased(siblings), "batch": unbiased(readable), "none": 1.0}[std]
        out.append((total - sum(others) / len(others)) / scale)
    return out


@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["group", "batch", "leave_one_out"])
def test_sum_then_normalise_is_the_loop(std, baseline):
    totals = [0.3, 0.28, 0.9, 0.29, None, 0.31, 0.1, None]
    advantage, counted, log = advantages(scored(column(totals)), GROUP, "sum_then_normalise", std, baseline)
    expected = expected_sum_then_normalise(totals, GROUP.tolist(), std, baseline)
    torch.testing.assert_close(advantage, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert advantage.dtype == torch.float32
    assert counted.tolist() == [t is not None for t in totals]
    assert log["reward_std"] == pytest.approx(unbiased([t for t in totals if t is not None]), rel=1e-6)


def test_normalise_then_sum_is_the_loop():
    torch.manual_seed(0)
    table = torch.rand(8, 3) * torch.tensor([0.02, 1.0, 26.0])
    table[2, 0] = math.nan  # abstains on one sibling
    table[:, 2] = torch.where(GROUP == 3, 26.0, table[:, 2])  # no spread in group 3
    weights = [1.0, 0.5, 2.0]
    sums = [0.0] * 8
    for k in range(3):
        for i in range(8):
            siblings = [float(table[j, k]) for j in range(8) if GROUP[j] == GROUP[i] and not table[j, k].isnan()]
            if not table[i, k].isnan() and unbiased(siblings) > 2**-20 * max(siblings):
                sums[i] += weights[k] * (float(table[i, k]) - sum(siblings) / len(siblings)) / unbiased(siblings)
    expected = torch.tensor(sums, dtype=torch.float64) / unbiased(sums)
    advantage, counted, _ = advantages(scored(table, weights), GROUP, "normalise_then_sum")
    torch.testing.assert_close(advantage.double(), expected, atol=1e-6, rtol=1e-5)
    assert counted.all()


TRL_HAS = [("sum_then_normalise", s) for s in ("group", "batch", "none")] + [("normalise_then_sum", "group")]


@pytest.mark.parametrize(("rule", "scale"), TRL_HAS)
def test_agrees_with_trl(rule, scale):
    """TRL's own lines, cut out of its rollout, without the epsilon of 1e-4 that it adds to each std."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer")
    source = textwrap.dedent(inspect.getsource(grpo.GRPOTrainer._generate_and_score_completions))
    start, end = source.find("unscorable_mask ="), source.find("# Slice to keep only the local part")
    if min(start, end) < 0:
        pytest.skip("this TRL keeps its advantages elsewhere")
    torch.manual_seed(1)
    table, group = torch.rand(12, 2), torch.arange(3).repeat_interleave(4)
    table[5] = math.nan  # a row nobody could score
    weights = [1.0, 0.7]
    trl = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize" if rule == "sum_then_normalise" else "normalize_then_sum",
        scale_rewards=scale,
        reward_weights=torch.tensor(weights),
        reward_funcs=[None, None],
    )
    assert "1e-4" in source[start:end]
    names = {"self": trl, "rewards_per_func": table.double(), "num_generations": 4, "device": "cpu", "mode": "train"}
    exec(textwrap.dedent("    " + source[start:end]).replace("1e-4", "0.0"), vars(grpo) | names, names)
    advantage, counted, _ = advantages(scored(table, weights), group, rule, scale)
    torch.testing.assert_close(advantage, names["advantages"].float(), rtol=1e-6, atol=1e-6)
    assert counted.tolist() == [row != 5 for row in range(12)]


def test_leave_one_out_is_trls_rloo():
    rloo = pytest.importorskip("trl.trainer.rloo_trainer")
    source = textwrap.dedent(inspect.getsource(rloo.RLOOTrainer._generate_and_score_completions))
    start, end = source.find("unscorable_mask ="), source.find("# Slice to keep only the local part")
    if min(start, end) < 0:
        pytest.skip("this TRL keeps its advantages elsewhere")
    torch.manual_seed(2)
    table, group, weights = torch.rand(12, 2), torch.arange(3).repeat_interleave(4), [1.0, 0.7]
    table[5] = math.nan
    trl = SimpleNamespace(
        reward_weights=torch.tensor(weights), reward_clip_range=None, beta=0.0, normalize_advantages=0
    )
    names = {"self": trl, "rewards_per_func": table.double(), "num_generations": 4, "device": "cpu", "mode": "train"}
    exec(textwrap.dedent("    " + source[start:end]), vars(rloo) | names, names)
    advantage, _, _ = advantages(scored(table, weights), group, std="none", baseline="leave_one_out")
    torch.testing.assert_close(advantage, names["advantages"].float(), rtol=1e-6, atol=1e-6)


def test_only_the_best_of_each_group_counts_for_raft():
    totals = [0.3, 0.28, 0.9, 0.29, None, 0.31, 0.1, None]
    advantage, counted, _ = advantages(scored(column(totals)), GROUP, "best")
    best = [max((t, i) for i, t in enumerate(totals) if t is not None and GROUP[i] == g)[1] for g in GROUP.unique()]
    several = [i for i in best if sum(t is not None for t, g in zip(totals, GROUP, strict=True) if g == GROUP[i]) > 1]
    assert counted.nonzero()[:, 0].tolist() == sorted(several)
    assert advantage.tolist() == [float(i in several) for i in range(8)]
    assert not advantages(scored(torch.full((8, 1), 0.5)), GROUP, "best")[1].any()


@pytest.mark.parametrize("level", [0.1, 0.7, 1e4 + 0.1, -3.3e-5])
@pytest.mark.parametrize("rule", ["sum_then_normalise", "normalise_then_sum"])
def test_a_constant_group_counts_for_nothing(level, rule):
    """Invariant 12."""
    values = torch.full((8, 1), level)
    values[::2] *= 1 + 1e-7  # what a batch-dependent kernel leaves behind
    advantage, counted, log = advantages(scored(values), GROUP, rule)
    assert not counted.any()
    assert not advantage.any()
    assert log["frac_reward_zero_std"] == 1.0


def test_spread_is_judged_per_aspect_not_on_the_sum():
    one = torch.tensor([0.0, 1.0, 0.0, 1.0])[:, None]
    opposed = scored(torch.cat([one, 1 - one], 1), weights=[1.0, 1.5])
    level = scored(torch.cat([one, 1 - one], 1))  # sums to 1 everywhere
    group = torch.zeros(4, dtype=torch.long)
    assert not advantages(level, group, "sum_then_normalise")[1].any()
    assert advantages(level, group, "normalise_then_sum")[1].all()
    assert advantages(opposed, group, "normalise_then_sum")[0].abs().min() > 0


@pytest.mark.parametrize("rule", ["sum_then_normalise", "normalise_then_sum"])
def test_failed_rows_leave_their_siblings_alone(rule):
    """Invariant 16."""
    torch.manual_seed(2)
    table, failed = torch.rand(8, 2), torch.zeros(8, 2, dtype=torch.bool)
    failed[4, 1] = True
    keep = [i for i in range(8) if i != 4]
    advantage, counted, _ = advantages(scored(table, failed=failed), GROUP, rule)
    without, _, _ = advantages(scored(table).select(keep), GROUP[keep], rule)
    assert advantage[4] == 0
    assert not counted[4]
    torch.testing.assert_close(advantage[keep], without)


def test_a_failed_aspect_without_weight_masks_nothing():
    table, failed = torch.rand(8, 2), torch.zeros(8, 2, dtype=torch.bool)
    failed[:, 1] = True
    assert advantages(scored(table, [1.0, 0.0], failed), GROUP, "normalise_then_sum")[1].all()


def test_order_weights_scale_and_masked_groups():
    """Invariants 13, 14, 16."""
    torch.manual_seed(3)
    table = torch.rand(8, 2)
    base, _, _ = advantages(scored(table, [1.0, 2.0]), GROUP, "normalise_then_sum")
    order = torch.randperm(8)
    shuffled, _, _ = advantages(scored(table[order], [1.0, 2.0]), GROUP[order], "normalise_then_sum")
    torch.testing.assert_close(shuffled, base[order])
    scaled, _, _ = advantages(scored(table, [7.0, 14.0]), GROUP, "normalise_then_sum")
    torch.testing.assert_close(scaled, base)
    nothing, counted, log = advantages(scored(torch.full((8, 2), math.nan)), GROUP)
    assert not nothing.any()
    assert not counted.any()
    assert log["frac_reward_zero_std"] == 1.0


def test_group_std_gives_zero_mean_and_unit_variance():
    advantage, _, _ = advantages(scored(torch.rand(8, 1)), GROUP)
    for name in (3, 7):
        assert advantage[name == GROUP].mean() == pytest.approx(0, abs=1e-6)
        assert advantage[name == GROUP].std() == pytest.approx(1, abs=1e-5)


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_best_and_worst_of_each_group():
    totals = column([0.3, 0.2, 0.9, 0.2, None, 0.2, 0.1, 0.2])  # group 3 ties throughout
    assert best_worst_pairs(scored(totals), GROUP).tolist() == [[2, 6]]
    assert best_worst_pairs(scored(totals), GROUP, min_gap=0.9).tolist() == []


def test_all_pairs_are_every_untied_two():
    totals = [0.3, 0.2, 0.9, 0.25, None, 0.2, 0.1, 0.2]
    expected = {
        (i, j)
        for i in range(8)
        for j in range(8)
        if GROUP[i] == GROUP[j] and None not in (totals[i], totals[j]) and totals[i] - totals[j] > 0.06
    }
    pairs = all_pairs(scored(column(totals)), GROUP, min_gap=0.06)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert len(pairs) == len(expected) == 3


def test_dominating_pairs_are_those_whose_winner_is_no_worse_in_anything():
    """Three weighted aspects, the last one counted downwards, and one without weight that nobody looks at."""
    table = torch.randint(0, 4, (24, 4), generator=torch.Generator().manual_seed(3)).float()
    table[5, 1] = math.nan
    weights, group = [1.0, 0.5, -2.0, 0.0], torch.arange(24) % 3
    scores = scored(table, weights)
    expected = set()
    for i in range(24):
        for j in range(24):
            no_worse = table[i, 0] >= table[j, 0] and table[i, 1] >= table[j, 1] and table[i, 2] <= table[j, 2]
            same = torch.equal(table[i, :3], table[j, :3])
            if group[i] == group[j] and 5 not in (i, j) and no_worse and not same:
                expected.add((i, j))
    assert {tuple(pair) for pair in dominating_pairs(scores, group).tolist()} == expected
    assert 10 < len(expected) < len(all_pairs(scores, group))


# ---- weights and the forward process --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, 2])
def test_regression_weights_are_the_loop(keep):
    totals = [0.3, 0.28, 0.9, 0.29, None, 0.31, 0.1, None]
    weight, counted = regression_weights(scored(column(totals)), GROUP, 0.2, keep)
    expected = [0.0] * 8
    for name in (3, 7):
        rows = [i for i in range(8) if GROUP[i] == name and totals[i] is not None]
        best = sorted(rows, key=lambda i: -totals[i])[:keep]
        for i in best:
            expected[i] = len(best) * math.exp(totals[i] / 0.2) / sum(math.exp(totals[j] / 0.2) for j in best)
    torch.testing.assert_close(weight, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert counted.tolist() == [value > 0 for value in expected]
    assert weight[counted].mean() == pytest.approx(1.0, rel=1e-6)


def test_regression_weights_ignore_the_rewards_offset_and_never_overflow():
    totals = torch.rand(8, 1)
    weight, _ = regression_weights(scored(totals), GROUP, 0.2)
    torch.testing.assert_close(regression_weights(scored(totals - 64.0), GROUP, 0.2)[0], weight, atol=1e-4, rtol=1e-3)
    cold, counted = regression_weights(scored(totals), GROUP, 1e-8)
    assert cold.isfinite().all()
    assert counted.all()
    for name in (3, 7):
        rows = (name == GROUP).nonzero().flatten()
        assert cold[rows].tolist() == [4.0 * (row == rows[totals[rows, 0].argmax()]) for row in rows]


def test_regression_weights_of_a_constant_group_are_none():
    values = torch.full((8, 1), 0.7)
    values[0] *= 1 + 1e-7
    values[GROUP == 3] = torch.rand(4, 1)
    weight, counted = regression_weights(scored(values), GROUP, 1.0)
    assert counted.tolist() == (GROUP == 3).tolist()
    assert not weight[GROUP == 7].any()


@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_nft_loss_is_that_of_the_outputs(beta):
    """Float64, from the vectors that it only knows the squares of."""
    generator = torch.Generator().manual_seed(9)
    target, old, out = torch.randn(3, 5, 32, generator=generator, dtype=torch.float64).unbind()
    out.requires_grad_(True)
    good = torch.rand(5, generator=generator, dtype=torch.float64)

    def square(x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1)

    found = nft_loss(-square(target - out), -square(target - old), square(out - old), good, beta, 32, 0.09)
    expected = torch.zeros(5, dtype=torch.float64)
    for share, sign in ((good, 1), (1 - good, -1)):
        x0_error = 0.3 * (old + sign * beta * (out - old) - target)
        expected = expected + share / beta * x0_error.square().mean(1) / x0_error.detach().square().mean(1).sqrt()
    torch.testing.assert_close(found, expected)
    (ours,), (theirs,) = (torch.autograd.grad(loss.sum(), out, retain_graph=True) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_nft_loss_pulls_to_the_good_and_pushes_from_the_bad():
    target, out = torch.ones(2, 4), torch.zeros(2, 4, requires_grad=True)
    old = out.detach()
    score, gap = -(target - out).square().sum(1), (out - old).square().sum(1)
    nft_loss(score, score.detach(), gap, torch.tensor([1.0, 0.0]), 1.0, 4, 1.0).sum().backward(retain_graph=True)
    assert (out.grad[0] < 0).all()
    torch.testing.assert_close(out.grad[0], -out.grad[1])
    even = nft_loss(score, score.detach(), gap, torch.full((2,), 0.5), 1.0, 4, 1.0)
    (still,) = torch.autograd.grad(even.sum(), out)
    assert not still.any()
