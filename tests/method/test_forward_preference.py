"""Preferences on the forward process (Diffusion-DPO and its flow form), against loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from genalign.method import MethodSettings
from genalign.types import Prompt, UsageError
from tests.helpers.learners import (
    LOG2,
    PAIRED,
    Pictures,
    asked,
    backward,
    disturbed,
    errors,
    experience_of,
    mean,
    method,
)
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward


def test_a_time_dependent_beta_is_refused_where_its_weight_is_nothing():
    assert method("flow-dpo", beta_schedule="time", times=(0.0, 0.5)).settings.times == (0.0, 0.5)
    with pytest.raises(UsageError, match="gives pure noise no weight"):
        method("flow-dpo", beta_schedule="time", times=(0.0, 0.02))


@pytest.mark.parametrize("name", PAIRED)
def test_first_preference_loss_is_log_2(name):
    learner, policy = method(name, group=4), ToyPolicy()
    experience = experience_of(learner, policy)
    _, losses = backward(learner, policy, experience)
    assert len(losses) == 4 * 4  # pairs, each a micro-batch, at four draws
    assert mean(losses, "loss") == pytest.approx(LOG2, rel=1e-7)
    assert mean(losses, "rewards/chosen") == mean(losses, "rewards/rejected") == 0.0
    assert mean(losses, "rewards/accuracies") == 0.5
    assert sum(loss.total.item() for loss in losses) == pytest.approx(LOG2, rel=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("schedule", ["constant", "time"])
@pytest.mark.parametrize("sft_weight", [0.0, 0.3])
def test_the_preference_loss_is_the_loop(reduction, schedule, sft_weight):
    """In float64 over pairs and draws; the time-dependent beta weighs errors as those of the noise they imply."""
    beta = 3.0 * (DIMS if reduction == "mean" else 1)
    learner = method("flow-dpo", group=4, beta=beta, reduction=reduction, beta_schedule=schedule, sft_weight=sft_weight)
    policy = disturbed()
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    values, margins = [], []
    for (at, seeds), (winner, loser) in zip(
        asked(policy, 16), [pair for pair in experience.pairs.tolist() for _ in range(4)], strict=True
    ):
        assert seeds[0] == seeds[1]
        gains = []
        for row in (winner, loser):
            ours, theirs = (errors(policy, row, at, seeds[0], experience, w) for w in ("policy", "reference"))
            if schedule == "time":
                ours, theirs = at * ours, at * theirs  # eps - eps_hat = (1 - t) (v - v_hat), with t = 1 - at here
            gain = theirs.square() - ours.square()
            gains.append(gain.mean() if reduction == "mean" else gain.sum())
        margins.append(beta / 2 * (gains[0] - gains[1]))
        own = errors(policy, winner, at, seeds[0], experience).square().mean()
        values.append(-torch.log(torch.sigmoid(margins[-1])) + sft_weight * own)
    expected = torch.stack(values).mean()
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    assert mean(losses, "rewards/margins") == pytest.approx(torch.stack(margins).mean().item(), rel=1e-3)
    assert mean(losses, "rewards/accuracies") == pytest.approx(sum(m.item() > 0 for m in margins) / len(margins))


@pytest.mark.parametrize("of_eps", [1.0, 0.04])
def test_the_time_dependent_beta_is_exact_where_the_policy_tells_what_an_error_of_its_output_is_worth(of_eps):
    """1 for a network that predicts the noise: nothing changes; a^2 for one that predicts v."""

    class Telling(ToyPolicy):
        def fit(self, prompts, clean, at, seeds, versus=None):
            return replace(super().fit(prompts, clean, at, seeds, versus), shares=(7.0, of_eps))

    told = {}
    for schedule in ("constant", "time"):
        learner, policy = method("flow-dpo", group=4, beta_schedule=schedule), Telling()
        with torch.no_grad():
            policy.delta += disturbed().delta
        told[schedule] = mean(backward(learner, policy, experience_of(learner, policy))[1], "rewards/margins")
    assert told["constant"] != 0
    assert told["time"] == pytest.approx(of_eps * told["constant"], rel=1e-5)


def test_swapping_a_pair_turns_its_margin_around():
    learner, policy = method("flow-dpo", group=4), disturbed()
    experience = experience_of(learner, policy)
    swapped = replace(experience, pairs=experience.pairs.flip(1))
    one, other = (mean(backward(learner, policy, x)[1], "rewards/margins") for x in (experience, swapped))
    assert one == pytest.approx(-other, rel=1e-5)
    assert one != 0


def test_pairs_follow_the_rule():
    policy = ToyPolicy()
    few = experience_of(method("flow-dpo", group=4), policy, ToyReward(dark=[2]))
    group, total = few.trajectory.group, few.scores.total
    assert {int(group[w]) for w, _ in few.pairs.tolist()} == {0, 1, 3}
    for winner, loser in few.pairs.tolist():
        assert total[winner] == total[group == group[winner]].max()
        assert total[loser] == total[group == group[winner]].min()
    assert len(few.noise) == len(few.pairs) == 3
    every = experience_of(method("flow-dpo", group=4, pair_rule="all"), policy)
    assert len(every.pairs) == len(every.noise) == 4 * 6
    assert len(set(every.noise.tolist())) == 4  # siblings share their noise, so each of them is asked about once
    asked, place = every.noised_rows(torch.arange(24))
    assert len(asked) == 16
    assert torch.equal(asked[place][..., 0], every.pairs)


GIVEN = [Prompt(f"scene {i}", uid=i) for i in range(6)]


def test_given_pictures_teach_without_a_reward_or_a_rollout():
    pictures, policy = Pictures(), ToyPolicy()
    learner = MethodSettings(name="flow-dpo").build_on(pictures)
    assert learner.needs == {"forward", "reference", "pairs"}
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=0.05)
    for step in range(20):
        experience = learner.collect(policy, GIVEN, None, 7, step)
        losses = list(learner.losses(policy, experience))
        if step == 0:
            assert mean(losses, "loss") == pytest.approx(LOG2, rel=1e-7)
        for loss in losses:
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert mean(losses, "rewards/accuracies") > 0.9
    assert mean(losses, "loss") < 0.5 * LOG2
    assert pictures.loaded == list(range(6))  # each is encoded once
    assert experience.pairs.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [10, 11]]
    assert experience.log == {"pairs/equal": 1.0}


def test_the_loss_of_given_pictures_is_that_of_the_same_samples():
    """A pair's noise hangs on its uid and the step, whatever it is drawn together with."""
    pictures, policy = Pictures(), disturbed()
    learner = MethodSettings(name="flow-dpo", beta=1.0).build_on(pictures)
    whole = [learner.collect(policy, GIVEN[:4], None, 7, 3)]
    parts = [learner.collect(policy, [prompt], None, 7, 3) for prompt in GIVEN[:4]]
    assert whole[0].noise.tolist() == [part.noise.item() for part in parts]
    assert len({part.times for part in parts}) == 1
    together, apart = (
        sum(backward(learner, policy, experience)[0] for experience in group) / len(group) for group in (whole, parts)
    )
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole[0].clean.sigmoid(), pictures.image[:4].reshape(8, DIMS))


def test_a_cycle_repeats_its_draws_and_asks_the_reference_once():
    pictures, policy = Pictures(), disturbed()
    learner = MethodSettings(name="flow-dpo", cycle=2).build_on(pictures)
    fresh = MethodSettings(name="flow-dpo").build_on(pictures)
    seen = [learner.collect(policy, GIVEN, None, 7, step) for step in range(4)]
    assert seen[0].times == seen[2].times != seen[1].times == seen[3].times
    assert seen[0].noise.tolist() == seen[2].noise.tolist() != seen[1].noise.tolist()
    asked_reference, gradients = [], []
    for experience in seen:
        policy.fits.clear()
        gradients.append(backward(learner, policy, experience)[0].clone())
        asked_reference.append([versus for *_, versus in policy.fits])
    assert asked_reference[0] == asked_reference[1] == ["reference"] * 12
    assert asked_reference[2] == asked_reference[3] == [None] * 12
    torch.testing.assert_close(gradients[2], gradients[0])
    torch.testing.assert_close(gradients[2], backward(fresh, policy, replace(seen[2], keys=None))[0])
