"""Pareto selection against brute force and moocore; Parrot against its equation and against weighted sums."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import moocore
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genalign.method import MethodSettings, build_method
from genalign.method.pareto import among_siblings, best_share, crowding, nondominated, objectives, tag_prompts
from genalign.types import Media, Prompt, Scores, UsageError
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward, make_scores

PROMPTS = [Prompt(f"scene {i}", uid=i) for i in range(3)]
TAGS = {"a": "<1>", "b": "<2>"}


def one_group(values: Tensor) -> Tensor:
    return torch.zeros(len(values), dtype=torch.long)


def brute_front(values: Tensor) -> list[bool]:
    rows = values.tolist()
    finite = [all(np.isfinite(row)) for row in rows]

    def beats(a: list[float], b: list[float]) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and any(x > y for x, y in zip(a, b, strict=True))

    alive = [row for row, ok in zip(rows, finite, strict=True) if ok]
    return [ok and not any(beats(other, row) for other in alive) for row, ok in zip(rows, finite, strict=True)]


# ---- fronts ---------------------------------------------------------------------------------------------------------


def test_the_front_of_ten_thousand_points_is_the_librarys_and_that_of_all_pairs():
    points = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = nondominated(points, one_group(points))
    assert np.array_equal(mask.numpy(), moocore.is_nondominated(points.numpy(), maximise=True))
    front, rest = points[mask], points[~mask]
    for part in rest.split(500):
        beaten = ((front[None] >= part[:, None]).all(-1) & (front[None] > part[:, None]).any(-1)).any(1)
        assert beaten.all()
    for part in front.split(50):
        beaten = ((points[None] >= part[:, None]).all(-1) & (points[None] > part[:, None]).any(-1)).any(1)
        assert not beaten.any()


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_fronts_with_ties_and_missing_values_are_those_of_brute_force(columns: int):
    generator = torch.Generator().manual_seed(columns)
    values = torch.randint(0, 4, (60, columns), generator=generator).double()
    values[::7, 0], values[5, -1], values[6] = torch.nan, torch.inf, torch.nan
    group = torch.arange(60) % 3
    mask = nondominated(values, group)
    for name in range(3):
        assert mask[group == name].tolist() == brute_front(values[group == name])
    assert not mask[~torch.isfinite(values).all(1)].any()
    assert mask.any()
    steps = values.clone()
    steps[:, 0] = steps[:, 0].exp()
    assert torch.equal(nondominated(steps, group), mask)  # any increasing map of a column
    order = torch.randperm(60, generator=generator)
    assert torch.equal(nondominated(values[order], group[order]), mask[order])


def test_the_front_holds_the_best_of_every_weighted_sum_and_ignores_what_is_dominated():
    values = torch.randn(80, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = nondominated(values, one_group(values))
    weights = torch.rand(200, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 1e-3
    assert mask[(values @ weights.T).argmax(0)].all()
    worse = torch.cat([values, values[mask] - 0.1])
    assert torch.equal(nondominated(worse, one_group(worse))[:80], mask)
    assert not nondominated(worse, one_group(worse))[80:].any()


def test_the_best_share_takes_whole_fronts_first_and_then_the_lonely():
    values = torch.randn(40, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values[0] = torch.nan
    rank = torch.full((40,), 99)
    left, level = values.clone(), 0
    while torch.isfinite(left).all(1).any():
        mask = torch.tensor(brute_front(left))
        rank[mask], left[mask], level = level, torch.nan, level + 1
    taken = best_share(values, one_group(values), 0.5)
    assert taken.sum() == 20  # of 39
    assert not taken[0]
    last = int(rank[taken].max())
    assert taken[rank < last].all()
    on_last = torch.nonzero(rank == last).flatten()
    spread = crowding(values[1:], rank[1:])[on_last - 1]
    chosen = taken[on_last]
    assert 0 < chosen.sum() < len(on_last)
    assert spread[chosen].min() >= spread[~chosen].max()


def test_crowding_is_the_sum_of_the_gaps_between_neighbours():
    points = torch.tensor([[0.0, 5.0], [1.0, 4.0], [3.0, 3.0], [5.0, 0.0], [9.0, 9.0]]).double()
    distance = crowding(points, torch.tensor([0, 0, 0, 0, 1]))
    assert distance.tolist() == [torch.inf, 3 / 5 + 2 / 5, 4 / 5 + 4 / 5, torch.inf, torch.inf]


def test_objectives_are_signed_and_missing_ones_are_nan():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    valid = torch.tensor([[True, True, True], [True, False, True]])
    scores = make_scores(values, valid, weights=[1.0, -2.0, 0.0])
    got = objectives(scores, ["b", "c"])
    assert got[0].tolist() == [-2.0, 3.0]
    assert torch.isnan(got[1, 0])
    with pytest.raises(UsageError, match="names 'x', but the reward's aspects are a, b, c"):
        objectives(scores, ["a", "x"])
    with pytest.raises(UsageError, match="at least two rewards"):
        objectives(scores, ["a"])


def test_a_share_is_compared_within_its_group():
    values, group = torch.tensor([1.0, 2.0, 3.0, 10.0, 10.0, torch.nan]).double(), torch.tensor([0, 0, 0, 1, 1, 0])
    assert among_siblings(values, group).tolist() == [-1, 0, 1, 0, 0, 0]


# ---- Parrot ---------------------------------------------------------------------------------------------------------


class TaggedPolicy(ToyPolicy):
    """The drift hears the tag only; its reference does not."""

    def __init__(self, **keys) -> None:
        super().__init__(**keys)
        self.heard: list[str] = []

    def drift(self, prompts: Sequence[Prompt]) -> Tensor:
        rows = [[1.0, float(p.text.startswith("<1>")), float(p.text.startswith("<2>"))] for p in prompts]
        return torch.tensor(rows) @ self.delta if self.adapters_on else torch.zeros(len(rows), DIMS)


class Corners(ToyReward):
    """Two rewards in (0,1) of the first two pixels, each highest at a place of its own."""

    aspects = ("a", "b")
    centres = ((0.95, 0.95), (0.05, 0.95))  # both want the second pixel bright

    def __init__(self, broken: Sequence[int] = ()) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.rows_broken = list(broken)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        self.asked += [prompt.text for prompt in prompts]
        pixels = media["image"].data.flatten(1)[:, :2]  # type: ignore[union-attr]
        apart = torch.stack([(pixels - torch.tensor(centre)).square().sum(1) for centre in self.centres], 1)
        failed = torch.zeros_like(apart, dtype=torch.bool)
        failed[self.rows_broken, 1] = True
        return make_scores((-4 * apart).exp(), failed=failed)


def parrot(**keys):
    return build_method(MethodSettings(name="parrot", **{"tags": TAGS, "group": 16, **keys}))


def test_each_prompt_is_asked_with_each_tag_and_scored_without():
    tagged, plain, asked = tag_prompts(PROMPTS, ["<1>", "<2>"])
    assert [p.text for p in tagged[:3]] == ["<1> scene 0", "<2> scene 0", "<1> scene 1"]
    assert [p.text for p in plain[:3]] == ["scene 0", "scene 0", "scene 1"]
    assert len({p.uid for p in tagged}) == 6
    assert asked.tolist() == [0, 1] * 3
    reward = Corners()
    experience = parrot().collect(TaggedPolicy(), PROMPTS, reward, 0, 0)
    assert set(reward.asked) == {p.text for p in PROMPTS}
    assert {p.text for p in experience.trajectory.prompts} == {p.text for p in tagged}
    assert experience.scores.values.shape == (96, 2)  # both rewards, whatever the tag


def test_a_plain_prompt_may_ask_for_the_total():
    learner = parrot(tags={**TAGS, "total": ""}, signal="reward")
    experience = learner.collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)
    rows = [k % 48 // 16 for k in range(144)]  # which tag a row has
    plain = [row for row, tag in enumerate(rows) if tag == 2]
    assert {experience.trajectory.prompts[row].text for row in plain} == {p.text for p in PROMPTS}
    scores, counted = experience.scores, experience.counted
    asked = torch.stack([scores.values[:, 0], scores.values[:, 1], scores.total], 1)[range(144), rows]
    assert torch.equal(experience.advantage[counted], asked[counted])
    assert torch.equal(counted, nondominated(scores.values.double(), experience.trajectory.group))
    assert counted[plain].any()
    assert not torch.equal(scores.total, scores.values[:, 0])


def test_tags_that_ask_for_nothing_of_their_own_are_refused():
    with pytest.raises(UsageError, match="same words"):
        parrot(tags={"a": "<1>", "b": "<1>"})
    with pytest.raises(UsageError, match="total is not one"):
        parrot(tags={"a": "<1>", "total": ""}).collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)
    alone = parrot(tags={"total": ""}).collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)
    assert torch.equal(alone.counted, nondominated(alone.scores.values.double(), alone.trajectory.group))


def test_the_gradient_is_that_of_the_paper():
    """(1/|P|) sum over the front of r_k times the gradient of the log-density, with everything else at exactly 0."""
    learner, policy = parrot(), TaggedPolicy()
    experience = learner.collect(policy, PROMPTS[:1], Corners(), 0, 0)
    policy.replays.clear()
    for loss in learner.losses(policy, experience):
        loss.total.backward()
    values = experience.scores.values.double()
    expected, chosen = torch.zeros_like(policy.delta), []
    everything = policy.replay(experience.trajectory, range(32))
    for k in (0, 1):
        rows = range(16 * k, 16 * k + 16)
        front = [row for row, ok in zip(rows, brute_front(values[list(rows)]), strict=True) if ok]
        chosen += front
        for row in front:
            (gradient,) = torch.autograd.grad(everything.score[row].sum(), policy.delta, retain_graph=True)
            expected -= float(values[row, k]) * gradient
    torch.testing.assert_close(policy.delta.grad, expected / (len(chosen) * policy.steps), atol=1e-6, rtol=1e-5)
    assert 0 < len(chosen) < 32
    assert experience.counted.nonzero().flatten().tolist() == chosen
    assert experience.log["front/share"] == pytest.approx(len(chosen) / 32)
    assert {int(row) for rows, _ in policy.replays[:-1] for row in rows} <= {
        row // 2 * 2 + side for row in chosen for side in (0, 1)
    }  # micro-batches without a chosen sample are not replayed


def test_what_is_dominated_or_missing_weighs_nothing():
    whole = parrot().collect(TaggedPolicy(), PROMPTS[:1], Corners(), 0, 0)
    broken = [int(whole.counted.nonzero()[0]), int((~whole.counted).nonzero()[0])]
    experience = parrot().collect(TaggedPolicy(), PROMPTS[:1], Corners(broken), 0, 0)
    assert not experience.counted[broken].any()
    assert not experience.advantage[~experience.counted].any()
    assert experience.advantage[experience.counted].min() > 0


def test_the_advantage_signal_and_the_share():
    experience = parrot(signal="advantage", keep=0.25).collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)
    assert int(experience.counted.sum()) == 6 * 4
    values, group = experience.scores.values.double(), experience.trajectory.group
    asked = torch.arange(2).repeat(3).repeat_interleave(16)
    expected = among_siblings(values.gather(1, asked[:, None])[:, 0], group)
    expected = torch.where(experience.counted, expected, 0.0).float()
    torch.testing.assert_close(experience.advantage, expected)
    assert (experience.advantage < 0).any()


def test_without_tags_the_objectives_are_the_weighted_aspects():
    experience = parrot(tags={}).collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)
    assert len(experience.trajectory.prompts) == 48
    chosen = experience.counted
    torch.testing.assert_close(experience.advantage[chosen], experience.scores.total[chosen])


def test_a_front_that_hardly_selects_is_told_once():
    learner = parrot(group=3)
    with pytest.warns(UserWarning, match=r"of the samples are in the first front of 2 rewards.*raise method\.group"):
        learner.collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.collect(TaggedPolicy(), PROMPTS, Corners(), 0, 1)
        parrot(group=3, keep=0.5).collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)
        parrot(group=64).collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)


def test_a_tag_of_a_reward_that_is_not_there_is_one_sentence():
    with pytest.raises(UsageError, match=r"method\.tags names 'sharp', but the reward's aspects are a, b"):
        parrot(tags={"sharp": "<1>", "a": "<2>"}).collect(TaggedPolicy(), PROMPTS, Corners(), 0, 0)


# ---- against weighted sums ------------------------------------------------------------------------------------------


class Weighted(Corners):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __call__(self, prompts, media, group=None) -> Scores:
        values = super().__call__(prompts, media, group).values
        return make_scores(values, weights=[self.share, 1 - self.share])


def train(learner, policy: ToyPolicy, reward: Corners, steps: int) -> None:
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=0.05)
    for step in range(steps):
        for loss in learner.losses(policy, learner.collect(policy, PROMPTS, reward, 0, step)):
            loss.total.backward()
            if loss.step:
                nn.utils.clip_grad_norm_(policy.delta, 1.0)
                optimizer.step()
                optimizer.zero_grad()


def volume(policy: ToyPolicy, prompts: Sequence[Prompt]) -> float:
    """Hypervolume of a batch of 96 fresh samples above (0, 0)."""
    batch = policy.rollout(prompts, 96 // len(prompts), seed=99)
    values = Corners()(batch.prompts, batch.media).values
    return float(moocore.hypervolume(values.double().numpy(), ref=[0.0, 0.0], maximise=True))


@pytest.mark.filterwarnings("ignore:.*hardly selects")
def test_parrot_spans_more_of_two_conflicting_rewards_than_weighted_sums_do():
    """Equal samples, equal steps; three weights."""
    steps, (tagged, _, _) = 30, tag_prompts(PROMPTS, list(TAGS.values()))
    ours = TaggedPolicy(rows_together=96, sigma=0.25)
    start = volume(ours, tagged)
    train(parrot(), ours, Corners(), steps)
    sums = []
    for share in (0.25, 0.5, 0.75):
        other = TaggedPolicy(rows_together=96, sigma=0.25)
        train(build_method(MethodSettings(name="grpo", group=32, clip_nats=(1.0, 1.0))), other, Weighted(share), steps)
        sums.append(volume(other, PROMPTS))
    assert volume(ours, tagged) > 1.2 * max(*sums, start)
