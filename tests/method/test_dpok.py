"""DPOK: a learnt value as the baseline, and the KL to the base."""

from __future__ import annotations

import math

import pytest
import torch

from genalign.method.losses import regression_weights
from genalign.types import Prompt
from tests.helpers.learners import PROMPTS, Seeing, backward, disturbed, experience_of, mean, method, train
from tests.helpers.toy_policy import ToyPolicy, ToyReward


def test_dpok_learns_on_tokens_as_well():
    rewards = train(method("dpok", group=8), ToyPolicy(token_like=True), 30)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


def test_dpok_is_reward_above_value_and_kl():
    """Before V has learnt it is the mean of the rewards."""
    learner, policy = method("dpok", group=4, reward_weight=3.0, kl_beta=0.2), disturbed()
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    everything = policy.replay(experience.trajectory, range(16), versus="reference")
    advantage = experience.scores.total - experience.scores.total.mean()
    drift = policy.drift(experience.trajectory.prompts)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(drift, policy.sigma), torch.distributions.Normal(0.0, policy.sigma)
    ).sum(1)
    surrogate = -(3.0 * everything.score * advantage[:, None]).mean() + 0.2 * kl.mean()
    (expected,) = torch.autograd.grad(surrogate, policy.delta)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert mean(losses, "kl") == pytest.approx(kl.mean().item(), rel=1e-5)
    assert mean(losses, "kl/path") == pytest.approx(3 * kl.mean().item(), rel=1e-5)
    assert mean(losses, "value/error") == pytest.approx(advantage.square().mean().item(), rel=1e-4)
    assert mean(losses, "ratio/mean") == 1.0


def test_the_path_of_kls_bounds_the_kl_of_what_is_drawn():
    """The random walk ends at N(x + S drift, S sigma^2 I) from each x, so the KL of its end is known."""
    policy = disturbed()
    learner = method("dpok", group=1)
    losses = backward(learner, policy, experience_of(learner, policy))[1]
    drift, steps = policy.drift(PROMPTS).detach(), policy.steps
    end = (steps * drift).square().sum(1) / (2 * steps * policy.sigma**2)
    assert mean(losses, "kl/path") >= end.mean().item() * (1 - 1e-5)
    with_start = (steps * drift).square().sum(1) / (2 * (1 + steps * policy.sigma**2))  # x itself is N(0, I)
    assert mean(losses, "kl/path") > 1.5 * with_start.mean().item()


@pytest.mark.slow  # test_dpok_is_reward_above_value_and_kl holds the gradient of reward and KL against its formula
def test_a_heavy_kl_holds_the_policy_where_it_was():
    free, held = ToyPolicy(), ToyPolicy()
    train(method("dpok", group=8, kl_beta=0.0), free, 20)
    train(method("dpok", group=8, kl_beta=1e4), held, 20)
    assert held.delta.abs().max() < 0.3 * free.delta.abs().max()
    assert "reference" not in method("dpok", kl_beta=0.0).needs


def test_the_value_learns_what_a_path_will_be_worth():
    """Given x_t it explains more of the reward than the prompt alone, which explains more than the mean."""
    left = {}
    for name, policy, steps in (
        ("mean", ToyPolicy(rows_together=32), 0),
        ("prompt", ToyPolicy(rows_together=32), 40),
        ("state", Seeing(rows_together=32), 40),
    ):
        learner = method("dpok", group=16, value_steps=steps, value_learning_rate=0.01)
        bright = [Prompt("bright one", uid=1), Prompt("dark other", uid=2)]
        for step in range(25):
            experience = learner.collect(policy, bright, ToyReward(dark=[2]), 11, step)
            losses = list(learner.losses(policy, experience))
        left[name] = mean(losses, "value/error")
    assert left["prompt"] < 0.7 * left["mean"]
    assert left["state"] < 0.8 * left["prompt"]


def test_a_learnt_baseline_leaves_the_expected_gradient_and_lowers_its_variance():
    gradients = {}
    for name, steps in (("mean", 0), ("value", 60)):
        learner, policy = (
            method("dpok", group=32, value_steps=steps, value_learning_rate=0.01, kl_beta=0.0),
            Seeing(rows_together=32),
        )
        learnt = []
        for step in range(60):
            gradient, _ = backward(learner, policy, learner.collect(policy, PROMPTS[:1], ToyReward(), 11, step))
            learnt.append(gradient[0].clone())  # of the policy as it was: nothing is updated
        gradients[name] = torch.stack(learnt[20:])  # (40,D)
    error = (gradients["mean"] - gradients["value"]).std(0) / math.sqrt(40)
    assert ((gradients["mean"].mean(0) - gradients["value"].mean(0)).abs() < 4 * error).all()
    assert (gradients["mean"].mean(0) < -0.1).all()
    assert gradients["value"].var(0).sum() < 0.8 * gradients["mean"].var(0).sum()


def test_dpok_compares_nothing_with_siblings():
    learner, policy = method("dpok", group=1), ToyPolicy()
    experience = experience_of(learner, policy, ToyReward(broken=[3]))
    assert experience.counted.tolist() == [True, True, True, False]
    backward(learner, policy, experience)
    assert regression_weights(experience.scores, experience.trajectory.group, 1.0)[1].sum() == 0
