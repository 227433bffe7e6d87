"""Policy gradients on a toy policy whose every number can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from genalign.method.common import rollout_seed
from genalign.method.gradient import GradientSettings
from genalign.method.losses import advantages
from genalign.method.preference import PreferenceSettings
from genalign.types import GenalignError, Method, Policy, UsageError
from tests.helpers.learners import PROMPTS, backward, experience_of, mean, method, train
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward


@pytest.mark.parametrize("name", [*GradientSettings.presets, *(p for p in PreferenceSettings.presets if p != "tgdpo")])
@pytest.mark.parametrize("token_like", [False, True])
def test_every_preset_of_recorded_steps_raises_the_reward(name, token_like):
    learner, policy = method(name, group=8), ToyPolicy(rows_together=32, token_like=token_like)
    if name == "orpo" or (name == "gspo" and not token_like):
        with pytest.raises(UsageError, match=r"all steps of a sample|needs probabilities"):
            train(learner, policy, 1)
        return
    rewards = train(learner, policy, 30)
    assert isinstance(learner, Method)
    assert isinstance(policy, Policy)
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


@pytest.mark.parametrize("name", ["ddpo", "flow-grpo", "grpo", "rloo"])
def test_first_update_is_reinforce(name):
    """The accumulated gradient is that of -mean(A * logp), with the mean over steps (RLOO: over samples)."""
    learner, policy = method(name, group=4), ToyPolicy()
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    everything = policy.replay(experience.trajectory, range(16))
    divisor = 16 if name == "rloo" else 16 * policy.steps
    surrogate = -(everything.score * experience.advantage[:, None]).sum() / divisor
    (expected,) = torch.autograd.grad(surrogate, policy.delta)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert gradient.abs().max() > 1e-3
    assert mean(losses, "ratio/mean") == 1.0
    assert mean(losses, "clip_ratio/region_mean") == 0.0
    assert [loss.step for loss in losses] == [False] * (len(losses) - 1) + [True]


def test_clip_counts_and_stops_the_gradient():
    learner, policy = method("grpo", group=4, clip_nats=(1e-6, 1e-6)), ToyPolicy()
    experience = experience_of(learner, policy)
    with torch.no_grad():
        policy.delta += 0.3 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(0))
    gradient, losses = backward(learner, policy, experience)
    replayed = policy.replay(experience.trajectory, range(16))
    moved = replayed.score - experience.trajectory.logp
    outside = (moved * experience.advantage[:, None]) > 0
    surrogate = -(moved.exp() * experience.advantage[:, None] * ~outside).sum() / 48
    (expected,) = torch.autograd.grad(surrogate, policy.delta)
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert mean(losses, "clip_ratio/region_mean") == pytest.approx(float(outside.float().mean()))
    assert mean(losses, "ratio/mean") == pytest.approx(float(moved.detach().exp().mean()), rel=1e-5)


def test_kl_is_zero_at_first_and_pulls_back_later():
    learner, policy = method("flow-grpo", group=4, kl_beta=0.5), ToyPolicy()
    assert "reference" in learner.needs
    _, losses = backward(learner, policy, experience_of(learner, policy))
    assert mean(losses, "kl") == 0.0
    with torch.no_grad():
        policy.delta += 0.2
    experience = experience_of(learner, policy)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(policy.drift(experience.trajectory.prompts), policy.sigma),
        torch.distributions.Normal(0.0, policy.sigma),
    ).sum(-1)
    with_kl, losses = backward(learner, policy, experience)
    assert mean(losses, "kl") == pytest.approx(float(expected.detach().mean()), rel=1e-5)
    without, _ = backward(method("flow-grpo", group=4), policy, experience)
    (pull,) = torch.autograd.grad(0.5 * expected.mean(), policy.delta)
    torch.testing.assert_close(with_kl - without, pull, atol=1e-5, rtol=1e-4)


def test_k3_stands_in_where_there_is_no_closed_form():
    class NoClosedForm(ToyPolicy):
        def replay(self, *args, **kwargs):
            steps = super().replay(*args, **kwargs)
            return type(steps)(steps.score, steps.count, steps.mask, steps.versus_score)

    learner, policy = method("grpo", group=16, kl_beta=0.1), NoClosedForm(rows_together=64)
    with torch.no_grad():
        policy.delta += 0.05
    _, losses = backward(learner, policy, experience_of(learner, policy))
    exact = policy.drift(PROMPTS).square().sum(-1).mean() / (2 * policy.sigma**2)
    assert mean(losses, "kl") == pytest.approx(float(exact.detach()), rel=0.25)


def test_rows_that_do_not_count_weigh_nothing_and_cost_nothing():
    learner, policy = method("grpo", group=2), ToyPolicy()  # a micro-batch is a group
    experience = experience_of(learner, policy, ToyReward(dark=[1], broken=[3]))
    assert experience.counted.tolist() == [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2
    assert experience.log["frac_reward_zero_std"] == 0.5
    gradient, _ = backward(learner, policy, experience)
    assert {row for rows, _ in policy.replays for row in rows} == {0, 1, 4, 5}
    clean = learner.collect(policy, [PROMPTS[0], PROMPTS[2]], ToyReward(), 11, 0)
    expected, _ = backward(learner, policy, clean)
    torch.testing.assert_close(gradient, expected)


def test_nothing_moves_without_spread():
    learner, policy = method("grpo", group=4), ToyPolicy()
    experience = experience_of(learner, policy, ToyReward(dark=range(4)))
    assert list(learner.losses(policy, experience)) == []
    assert not experience.counted.any()


@pytest.mark.parametrize("name", ["grpo", "d3po"])
def test_micro_batches_do_not_matter(name):
    gradients = []
    for rows_together in (2, 4, 16):
        learner, policy = method(name, group=4), ToyPolicy(rows_together=rows_together)
        with torch.no_grad():
            policy.delta += 0.1
        gradients.append(backward(learner, policy, experience_of(learner, policy))[0])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "d3po"])
def test_updates_split_the_samples(name):
    learner, policy = method(name, group=4, updates_per_rollout=2), ToyPolicy()
    losses = list(learner.losses(policy, experience_of(learner, policy)))
    assert sum(loss.step for loss in losses) == 2
    assert losses[-1].step
    first = {row for rows, _ in policy.replays[: len(losses) // 2] for row in rows}
    second = {row for rows, _ in policy.replays[len(losses) // 2 :] for row in rows}
    assert first
    assert second
    assert not first & second
    greedy = method(name, group=4, updates_per_rollout=9)
    experience = experience_of(greedy, policy)
    with pytest.raises(UsageError, match="updates_per_rollout is 9"):
        list(greedy.losses(policy, experience))


def test_the_advantage_and_the_log_are_those_of_the_rule():
    learner, policy = method("flow-grpo", group=4, advantage_clip=0.5), ToyPolicy()
    experience = experience_of(learner, policy)
    expected, _, spread = advantages(experience.scores, experience.trajectory.group, std="batch")
    torch.testing.assert_close(experience.advantage, expected.clamp(-0.5, 0.5))
    assert experience.log["reward"] == pytest.approx(float(experience.scores.total.mean()))
    assert experience.log["rewards/a/mean"] == pytest.approx(float(experience.scores.values.mean()))
    assert experience.log["reward_std"] == spread["reward_std"]


def test_a_prompt_gets_new_samples_each_step_and_the_same_ones_in_a_rerun():
    learner, policy = method("grpo", group=2), ToyPolicy()
    first, again, later = (experience_of(learner, policy, step=step).trajectory.seeds for step in (0, 0, 1))
    assert first == again
    assert not set(first) & set(later)
    assert rollout_seed(11, 0) != rollout_seed(12, 0)


def test_a_reward_is_asked_for():
    with pytest.raises(GenalignError, match="grpo needs a reward"):
        method("grpo").collect(ToyPolicy(), PROMPTS, None, 0, 0)
