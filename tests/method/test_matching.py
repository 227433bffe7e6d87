"""DiffusionNFT and AWM, against loops."""

from __future__ import annotations

import math

import pytest
import torch

from genalign.method.losses import advantages
from tests.helpers.learners import PROMPTS, asked, backward, disturbed, errors, experience_of, mean, method
from tests.helpers.toy_policy import ToyPolicy


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_nft_loss_is_the_loop(beta):
    """In float64, from the outputs themselves, as the paper writes it."""
    learner, policy = method("nft", group=4, beta=beta, advantage_clip=1.5), disturbed(rows_together=16)
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    advantage, counted, _ = advantages(experience.scores, experience.trajectory.group, std="batch")
    assert counted.all()
    values = []
    for at, seeds in asked(policy, 4):
        for row, seed in enumerate(seeds):
            new, old = (errors(policy, row, at, seed, experience, w) for w in ("policy", "ema"))  # target - out
            good = 0.5 + 0.5 * max(-1.0, min(1.0, advantage[row].item() / 1.5))
            for share, sign in ((good, 1), (1 - good, -1)):
                x0_error = (1 - at) * ((1 - sign * beta) * old + sign * beta * new)
                size = x0_error.detach().square().mean().sqrt()
                values.append(1.5 * share / beta * x0_error.square().mean() / size)
    expected = 2 * torch.stack(values).mean()
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    gap = (policy.delta - policy.average).detach()
    features = torch.tensor([[1.0, p.uid % 3, (p.uid * 7 % 5) / 5] for p in experience.trajectory.prompts])
    assert mean(losses, "gap") == pytest.approx((features @ gap).square().mean().item(), rel=1e-4)


def test_the_old_model_draws_for_nft():
    learner, policy = method("nft", group=4), disturbed()
    assert "ema" in learner.needs
    with policy.weights("ema"):
        expected = policy.clean(policy.rollout(PROMPTS, 4, experience_of(learner, policy).trajectory.seeds))
    torch.testing.assert_close(experience_of(learner, policy).clean, expected)
    own = experience_of(method("awm", group=4), policy).clean
    assert (own - expected).abs().max() > 0.1
    assert policy.which == "policy"


def test_at_first_nft_pulls_as_hard_to_the_good_as_away_from_the_bad():
    """Where old and new agree and the weighting is even, its gradient is that of advantage x error."""
    learner, policy = method("nft", group=4), ToyPolicy(rows_together=16)
    experience = experience_of(learner, policy)
    gradient, _ = backward(learner, policy, experience)
    values = []
    for at, seeds in asked(policy, 4):
        for row, seed in enumerate(seeds):
            error = (1 - at) * errors(policy, row, at, seed, experience)
            values.append(experience.advantage[row] * error.square().mean() / error.detach().square().mean().sqrt())
    (expected,) = torch.autograd.grad(torch.stack(values).mean(), policy.delta)
    torch.testing.assert_close(gradient, expected.float(), atol=1e-6, rtol=1e-4)


def test_first_awm_update_is_advantage_times_error():
    learner, policy = method("awm", group=4), disturbed(rows_together=16)
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    values = [
        experience.advantage[row] * errors(policy, row, at, seed, experience).square().mean()
        for at, seeds in asked(policy, 4)
        for row, seed in enumerate(seeds)
    ]
    (expected,) = torch.autograd.grad(torch.stack(values).mean(), policy.delta)
    torch.testing.assert_close(gradient, expected.float(), atol=1e-6, rtol=1e-4)
    assert mean(losses, "ratio/mean") == 1.0
    assert mean(losses, "clip_ratio/region_mean") == 0.0


def test_later_awm_updates_are_clipped_against_the_likelihood_that_drew():
    clip = 0.05
    learner, policy = method("awm", group=4, updates_per_rollout=2, clip_nats=(clip, clip)), disturbed(rows_together=8)
    experience = experience_of(learner, policy)
    before = policy.delta.detach().clone()
    logs, totals, second = [], [], []
    for loss in learner.losses(policy, experience):
        logs.append(loss.log)
        totals.append(loss.total.item())
        if loss.step and not second:
            second.append(len(totals))
            with torch.no_grad():
                policy.delta += 0.3
    old_policy = disturbed()
    assert torch.equal(old_policy.delta, before)
    values = []
    for k, (at, seeds) in enumerate(asked(policy, 4)):
        rows = range(8, 16)
        for row, seed in zip(rows, seeds, strict=True):
            new, old = (errors(p, row, at, seed, experience).square().mean().item() for p in (policy, old_policy))
            ratio, advantage = math.exp(old - new), experience.advantage[row].item()
            values.append(-min(ratio * advantage, max(math.exp(-clip), min(math.exp(clip), ratio)) * advantage))
        assert totals[second[0] + k] == pytest.approx(sum(values[-8:]) / 32, rel=1e-4)
    assert sum(log["clip_ratio/region_mean"][0] for log in logs[second[0] :]) > 0
    assert all(log["ratio/mean"][0] == log["ratio/mean"][1] for log in logs[: second[0]])


def test_awm_is_drawn_to_the_reference():
    learner, policy = method("awm", group=4, kl_beta=0.5), disturbed()
    assert "reference" in learner.needs
    experience = experience_of(learner, policy)
    with_kl, losses = backward(learner, policy, experience)
    distance = policy.drift(experience.trajectory.prompts).square().mean()
    assert mean(losses, "gap") == pytest.approx(distance.item(), rel=1e-5)
    (pull,) = torch.autograd.grad(0.5 * distance, policy.delta)
    without = backward(method("awm", group=4), policy, experience)[0]
    torch.testing.assert_close(with_kl - without, pull, atol=1e-5, rtol=1e-4)
