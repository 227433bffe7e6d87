"""Advantages beyond one score among siblings: constraints, fronts, dead groups and hard prompts, each as a loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.fronts import front_ranks
from genalign.method import MethodSettings, build_method
from genalign.method.groups import budget_lead, consistency_blend, difficulty_scale
from genalign.method.losses import advantages
from genalign.reward import Budget, Constraint, Sharpness, Sum
from genalign.run.fits import check_fit
from genalign.types import Media, Prompt, Scores, Track, UsageError
from tests.helpers.toy_policy import ToyPolicy, ToyReward, make_scores

GROUP = torch.tensor([7, 3, 7, 3, 7, 3, 7, 3])  # interleaved, and not numbered from 0


def named(
    columns: dict[str, list[float | None]], weights: list[float], failed: tuple[int, str] | None = None
) -> Scores:
    """Scores of named columns in which None abstains; `failed` is one row of one column."""
    table = torch.tensor([[math.nan if v is None else v for v in row] for row in zip(*columns.values(), strict=True)])
    broken = torch.zeros_like(table, dtype=torch.bool)
    if failed is not None:
        broken[failed[0], list(columns).index(failed[1])] = True
    valid, weight = ~table.isnan() & ~broken, torch.tensor(weights)
    values, used = torch.where(valid, table, 0.0), weight != 0
    readable = valid[:, used].any(1) & ~broken[:, used].any(1)
    return Scores(tuple(columns), values, valid, broken, values @ weight, readable, weight)


def totals(values: list[float | None]) -> Scores:
    return named({"r": values}, [1.0])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def unbiased(values: list[float]) -> float:
    return math.sqrt(sum((v - mean(values)) ** 2 for v in values) / (len(values) - 1))


def standardised(values: list[float | None], std: str = "group") -> list[float]:
    """z among the siblings that have a value; 0 without one."""
    out = []
    everyone = [v for v in values if v is not None]
    for v, g in zip(values, GROUP.tolist(), strict=True):
        own = [u for u, h in zip(values, GROUP.tolist(), strict=True) if g == h and u is not None]
        scale = {"group": unbiased(own), "batch": unbiased(everyone), "none": 1.0}[std]
        out.append(0.0 if v is None else (v - mean(own)) / scale)
    return out


def random(seed: int, scale: float = 1.0) -> list[float]:
    return (scale * torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).float().tolist()


# ---- constraints ----------------------------------------------------------------------------------------------------


def constrained(one: list[float | None], two: list[float | None], failed: tuple[int, str] | None = None) -> Scores:
    """A sum of two tasks, of weights 1 and 0.5, and of two constraints, of weights 1 and 2; one part is only logged."""
    columns: dict[str, list[float | None]] = {"task": list(random(0)), "style": [None, *random(1, 9.0)[1:]]}
    for name, excess, multiplier in (("safe", one, 0.3), ("short", two, 0.9)):
        columns[name] = [None if e is None else multiplier * e for e in excess]
        columns[f"{name}/excess"] = excess
        columns[f"{name}/multiplier"] = [None if e is None else multiplier for e in excess]
    return named({**columns, "log": list(random(4))}, [1.0, 0.5, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0], failed)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_lagrangian_is_the_loop(std: Any) -> None:
    one, two = random(2, 30.0), random(3, 1e-2)
    scores = constrained(one, [None, *two[1:]])
    style = [v.item() for v in scores.values[:, 1]]
    style[0] = mean([style[i] for i in range(8) if GROUP[i] == GROUP[0] and i != 0])  # what abstains moves nothing
    task = [t + 0.5 * s for t, s in zip(random(0), style, strict=True)]
    share = (1 + 2) - (1 * 0.3 + 2 * 0.9)
    parts = zip(standardised(task, std), standardised(one, std), standardised([None, *two[1:]], std), strict=True)
    expected = [share * a + 0.3 * b + 2 * 0.9 * c for a, b, c in parts]
    advantage, counted, _ = advantages(scores, GROUP, "lagrangian", std)
    torch.testing.assert_close(advantage, torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert counted.all()


def test_lagrangian_goes_from_the_task_alone_to_the_constraint_alone() -> None:
    task, excess = random(0), random(1, 50.0)
    for multiplier, expected in ((0.0, standardised(task)), (1.0, standardised(excess))):
        columns = {
            "t": task,
            "c": [multiplier * e for e in excess],
            "c/excess": excess,
            "c/multiplier": [multiplier] * 8,
        }
        advantage, _, _ = advantages(named(columns, [1.0, 1.0, 0.0, 0.0]), GROUP, "lagrangian")
        torch.testing.assert_close(advantage, torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("rule", "column"), [("lagrangian", "task"), ("lagrangian", "safe"), ("pareto", "a")])
def test_failed_rows_leave_their_siblings_alone(rule: Any, column: str) -> None:
    """Invariant 16."""

    def scored(failed: tuple[int, str] | None) -> Scores:
        if rule == "lagrangian":
            return constrained(random(2), random(3), failed)
        rising = [0.1, 0.2, 0.2, 0.3, 0.9, 0.9, 0.4, 0.1]
        return named({"a": rising, "b": [r * r for r in rising]}, [1.0, 1.0], failed)

    keep = [i for i in range(8) if i != 4]
    advantage, counted, _ = advantages(scored((4, column)), GROUP, rule)
    without, _, _ = advantages(scored(None).select(keep), GROUP[keep], rule)
    assert advantage[4] == 0
    assert not counted[4]
    torch.testing.assert_close(advantage[keep], without)
    assert without.abs().max() > 0


def test_lagrangian_needs_constraints_and_a_task() -> None:
    for scores in (
        make_scores(torch.rand(8, 2)),
        named({"c": random(0), "c/excess": random(0), "c/multiplier": [1.0] * 8}, [1.0, 0.0, 0.0]),
    ):
        with pytest.raises(UsageError, match="a sum of constraints and something else"):
            advantages(scores, GROUP, "lagrangian")


def test_a_recipe_without_constraints_is_refused_before_anything_loads() -> None:
    learner = build_method(MethodSettings(name="grpo", group=4, advantage="lagrangian"), Path())
    with pytest.raises(UsageError, match="reward sum has no constraint"):
        check_fit(learner, Sum([Sharpness()]))
    check_fit(learner, Sum([Sharpness(), Constraint(Sharpness(name="s"), at_least=0.5)]))
    assert "constraints" not in build_method(MethodSettings(name="grpo", group=4), Path()).needs


# ---- fronts ---------------------------------------------------------------------------------------------------------


def fronts(rows: list[list[float]], group: list[int]) -> list[int]:
    rank, alive, level = [0] * len(rows), set(range(len(rows))), 0
    while alive:
        front = {
            i
            for i in alive
            if not any(
                group[j] == group[i]
                and rows[j] != rows[i]
                and all(x >= y for x, y in zip(rows[j], rows[i], strict=True))
                for j in alive
            )
        }
        for i in front:
            rank[i] = level
        alive, level = alive - front, level + 1
    return rank


def test_pareto_is_the_loop_over_fronts_and_knows_no_scale() -> None:
    table = (torch.rand(40, 2, generator=torch.Generator().manual_seed(5)) * 9).round()
    group = torch.arange(40) % 3
    rows = [[x, -y] for x, y in table.tolist()]  # the second is weighted below 0: less is better
    rank = fronts(rows, group.tolist())
    assert front_ranks(torch.tensor(rows), group).tolist() == rank
    advantage, counted, _ = advantages(make_scores(table, weights=[0.7, -2.0]), group, "pareto")
    for name in range(3):
        own = [-float(r) for r, g in zip(rank, group.tolist(), strict=True) if g == name]
        expected = torch.tensor([(r - mean(own)) / unbiased(own) for r in own])
        torch.testing.assert_close(advantage[group == name], expected, atol=1e-5, rtol=1e-5)
    assert counted.all()
    bent = torch.stack([table[:, 0].exp(), 1e-3 * table[:, 1] ** 3], 1)
    torch.testing.assert_close(advantages(make_scores(bent, weights=[9.0, -1.0]), group, "pareto")[0], advantage)


def test_a_group_that_is_one_front_teaches_nothing_and_incomplete_rows_are_compared_with_none() -> None:
    line = torch.tensor([[0.0, 3.0], [1.0, 2.0], [2.0, 1.0], [3.0, 0.0]])
    group = torch.zeros(4, dtype=torch.long)
    advantage, counted, log = advantages(make_scores(line), group, "pareto")
    assert not advantage.any()
    assert not counted.any()
    assert log["frac_reward_zero_std"] == 1.0
    best_but_silent = torch.tensor([[9.0, math.nan], [1.0, 1.0], [2.0, 2.0], [0.0, 0.0]])
    scores = make_scores(best_but_silent.nan_to_num(0.0), valid=~best_but_silent.isnan())
    advantage, counted, _ = advantages(scores, group, "pareto")
    assert advantage.tolist() == pytest.approx([0.0, 0.0, 1.0, -1.0])
    assert counted.tolist() == [False, True, True, True]


# ---- dead groups ----------------------------------------------------------------------------------------------------


def test_the_blend_is_the_loop() -> None:
    group = torch.tensor([0, 1, 2, 3] * 4)
    values: list[float | None] = [1.0, 0.0, 1.0, 0.2, 1.0, 0.0, 0.0, 0.4, 1.0, 0.0, 1.0, None, 1.0, 0.0, 1.0, 0.9]
    scores = totals(values)
    local, counted, _ = advantages(scores, group)
    own = [[v for v, g in zip(values, group.tolist(), strict=True) if g == k and v is not None] for k in range(4)]
    means = [mean(o) for o in own]
    expected = []
    for i, k in enumerate(group.tolist()):
        shares = [own[k].count(outcome) / len(own[k]) for outcome in set(own[k])]
        entropy = -sum(s * math.log(s) for s in shares) / math.log(len(own[k]))
        w = 1 / (1 + math.exp(-20 * (entropy - 0.25)))
        prompt = (means[k] - mean(means)) / unbiased(means)
        expected.append(0.0 if values[i] is None else w * local[i].item() + (1 - w) * prompt)
    blended, moved = consistency_blend(local, counted, scores, group)
    torch.testing.assert_close(blended, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert moved.tolist() == [v is not None for v in values]
    assert not counted[[0, 1]].any()  # all right, all wrong: alone they teach nothing ...
    assert blended[0] > 0.5
    assert blended[1] < -0.5  # ... and among the prompts they do
    torch.testing.assert_close(blended[group == 3], local[group == 3], atol=1e-5, rtol=0)  # all different: the usual


def test_prompts_that_all_did_alike_stay_out() -> None:
    group = torch.arange(8) // 4
    for values in ([0.7] * 8, [1.0, 0.0, 1.0, 0.0] * 2):
        scores = totals(values)
        local, counted, _ = advantages(scores, group)
        blended, moved = consistency_blend(local, counted, scores, group)
        assert moved.tolist() == counted.tolist()
        assert torch.equal(blended.sign(), local.sign())
    silent = totals([None] * 8)
    blended, moved = consistency_blend(torch.zeros(8), torch.zeros(8, dtype=torch.bool), silent, group)
    assert not blended.any()
    assert not moved.any()


# ---- difficulty -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("towards", ["hard", "easy"])
def test_the_scale_is_the_loop(towards: Any) -> None:
    values: list[float | None] = [0.9, 0.1, 0.4, 0.8, 0.2, 0.4, 1.0, 0.3, None, 0.7, 0.0, 0.5]
    group = torch.tensor([0, 1, 2, 3] * 3)
    own = [[v for v, g in zip(values, group.tolist(), strict=True) if g == k and v is not None] for k in range(4)]

    def scaled(x: list[float]) -> list[float]:
        z = [(v - mean(x)) / unbiased(x) for v in x]
        sigmoid = [1 / (1 + math.exp(-v)) for v in z]
        return [s / (1 / (1 + math.exp(-mean(z)))) for s in sigmoid]

    sign = -1.0 if towards == "hard" else 1.0
    by_mean = scaled([sign * mean(o) for o in own])
    by_gap = scaled([max(o) - min(o) for o in own])
    expected = torch.tensor([by_mean[k] * by_gap[k] for k in group.tolist()])
    torch.testing.assert_close(difficulty_scale(totals(values), group, towards), expected, atol=1e-6, rtol=1e-5)


def test_prompts_of_equal_hardness_keep_their_advantages_and_an_outlying_gap_weighs_one() -> None:
    group = torch.arange(40) // 2
    assert difficulty_scale(totals([0.0, 1.0] * 20), group).tolist() == [1.0] * 40
    assert difficulty_scale(totals([0.1, 0.3]), torch.zeros(2, dtype=torch.long)).tolist() == [1.0, 1.0]
    gaps = [0.1 + 0.01 * (k % 3) for k in range(19)] + [5.0]  # one gap is far out; all means are 0
    scale = difficulty_scale(totals([side * g / 2 for g in gaps for side in (-1.0, 1.0)]), group)
    assert scale[-1] == 1.0
    assert scale[:38].max() < 1.0


# ---- budgets --------------------------------------------------------------------------------------------------------


def test_the_lead_is_the_loop() -> None:
    values: list[float | None] = [3.0, 1.0, 0.0, 2.0, 3.5, None, 1.0, 2.5]
    budgets = [512.0, 1024.0, 1024.0, math.nan, 512.0, 512.0, 9000.0, 1024.0]
    group = torch.tensor([4, 4, 4, 4, 4, 4, 9, 9])
    worth = {512.0: 4 * math.cos(math.pi * 512 / 8192), 1024.0: 4 * math.cos(math.pi * 1024 / 8192), 9000.0: 0.0}
    expected = [
        *[(3.0 + 3.5) / 2 - worth[512.0], (1.0 + 0.0) / 2 - worth[1024.0], (1.0 + 0.0) / 2 - worth[1024.0], 0.0],
        *[(3.0 + 3.5) / 2 - worth[512.0], 0.0, 1.0 - worth[9000.0], 2.5 - worth[1024.0]],
    ]
    lead = budget_lead(totals(values), group, torch.tensor(budgets), 4096.0, 4.0)
    torch.testing.assert_close(lead, torch.tensor(expected), atol=1e-6, rtol=0)


def test_the_worth_of_a_budget_is_what_the_reward_gives_at_most() -> None:
    """Samples of exactly their budget lead by nothing; no sample leads."""
    reward, group = Budget(64.0, longest=512.0, height=2.0), torch.zeros(3, dtype=torch.long)
    for lengths in ([64, 64, 64], [10, 64, 300], [400, 500, 600]):
        scores = reward([Prompt("a")] * 3, Media(text=Track([" ".join(["w"] * n) for n in lengths])))
        lead = budget_lead(scores, group, torch.full((3,), 64.0), 512.0, 2.0)
        assert (lead <= 1e-6).all()
        assert bool((lead.abs() < 1e-6).all()) == (lengths == [64, 64, 64])


# ---- in a method ----------------------------------------------------------------------------------------------------


class Two(ToyReward):
    """How bright the first half of the image is, and how dark the rest: a task and a constraint on one side of it."""

    aspects = ("bright", "dark", "dark/excess", "dark/multiplier")

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        bright = super().__call__(prompts, media).total
        dark = 1 - media["image"].data.flatten(1)[:, 3:].mean(1)  # type: ignore[union-attr]
        columns = {"bright": bright, "dark": 0.4 * dark, "dark/excess": dark, "dark/multiplier": 0.4 + 0 * dark}
        return named({name: column.tolist() for name, column in columns.items()}, [1.0, 1.0, 0.0, 0.0])


@pytest.mark.parametrize("rule", ["lagrangian", "pareto"])
def test_the_rules_reach_the_policy_gradient(rule: Any) -> None:
    learner = build_method(MethodSettings(name="grpo", group=4, advantage=rule), Path())
    experience = learner.collect(ToyPolicy(), [Prompt("a", uid=0), Prompt("b", uid=1)], Two(), 3, 0)
    assert experience.scores is not None
    expected, counted, _ = advantages(experience.scores, experience.trajectory.group, rule)
    assert torch.equal(experience.advantage, expected)  # type: ignore[arg-type]
    assert torch.equal(experience.counted, counted)
    plain = build_method(MethodSettings(name="grpo", group=4), Path())
    usual = plain.collect(ToyPolicy(), [Prompt("a", uid=0), Prompt("b", uid=1)], Two(), 3, 0).advantage
    assert not torch.allclose(usual, expected, atol=1e-2)  # type: ignore[arg-type]


def test_dead_groups_and_hard_prompts_reach_the_policy_gradient() -> None:
    asked = [Prompt("a", uid=0), Prompt("b", uid=1), Prompt("c", uid=2)]
    reward = ToyReward(dark=[1])  # whose samples all score 0.1
    skip = build_method(MethodSettings(name="grpo", group=4), Path()).collect(ToyPolicy(), asked, reward, 3, 0)
    taught = build_method(MethodSettings(name="grpo", group=4, dead_groups="global"), Path())
    blend = taught.collect(ToyPolicy(), asked, reward, 3, 0)
    dead = blend.trajectory.group == 1
    assert int(skip.counted.sum()) == 8
    assert int(blend.counted.sum()) == 12
    assert skip.advantage is not None
    assert blend.advantage is not None
    assert not skip.advantage[dead].any()
    assert (blend.advantage[dead] < -0.5).all()
    torch.testing.assert_close(blend.advantage[~dead], skip.advantage[~dead], atol=1e-5, rtol=0)
    hard = build_method(MethodSettings(name="grpo", group=4, difficulty="hard"), Path())
    scaled = hard.collect(ToyPolicy(), asked, reward, 3, 0)
    assert scaled.scores is not None
    scale = difficulty_scale(scaled.scores, scaled.trajectory.group)
    torch.testing.assert_close(scaled.advantage, skip.advantage * scale)
    assert scale.std() > 0
    losses = list(hard.losses(ToyPolicy(), scaled))
    assert losses[-1].step


def test_budgets_reach_the_policy_gradient() -> None:
    asked = [Prompt("a", uid=0, facts={"budget": 512}), Prompt("b", uid=1, facts={"budget": 2048}), Prompt("c", uid=2)]
    reward = ToyReward(dark=[1])  # whose samples all score 0.1
    plain = build_method(MethodSettings(name="grpo", group=4), Path()).collect(ToyPolicy(), asked, reward, 3, 0)
    method = build_method(MethodSettings(name="grpo", group=4, budget=[4096, 4.0]), Path())
    budgeted = method.collect(ToyPolicy(), asked, reward, 3, 0)
    assert plain.scores is not None
    assert plain.advantage is not None
    group, total = plain.trajectory.group, plain.scores.total
    worth = [4 * math.cos(math.pi * 512 / 8192), 4 * math.cos(math.pi * 2048 / 8192)]
    lead = torch.stack([total[group == g].mean() - worth[g] if g < 2 else torch.tensor(0.0) for g in group.tolist()])
    torch.testing.assert_close(budgeted.advantage, plain.advantage + lead)
    assert int(plain.counted.sum()) == 8
    assert int(budgeted.counted.sum()) == 12  # a group that fails alike is pushed down by its budget
