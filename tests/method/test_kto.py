"""KTO on a toy policy: a float64 loop over samples, and TRL's formula."""

from __future__ import annotations

import math

import pytest
import torch

from genalign.types import Experience, UsageError
from tests.helpers.learners import Given, backward, experience_of, mean, method
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward
from tests.helpers.trl_trainers import kto_loss


@pytest.mark.parametrize("token_like", [False, True])
def test_the_loss_is_the_loop(token_like: bool) -> None:
    learner = method("kto", group=4, beta=0.3, undesirable_weight=0.5)
    policy = ToyPolicy(token_like=token_like, rows_together=4)
    with torch.no_grad():
        policy.delta += 0.1 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(1))
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    replayed = policy.replay(experience.trajectory, range(16), versus="reference")
    ratio = (replayed.score - replayed.versus_score).double()
    ratio = ratio.sum(1, keepdim=True) if token_like else ratio
    total, group = experience.scores.total, experience.trajectory.group
    values = []
    for s in range(ratio.shape[1]):
        for start in range(0, 16, 4):
            z = max(0.0, float(ratio[start : start + 4, s].mean()))
            for i in range(start, start + 4):
                good = float(total[i]) > float(total[group == group[i]].mean())
                weight, sign = (1.0, 1) if good else (0.5, -1)
                values.append(weight * (1 - torch.sigmoid(sign * 0.3 * (ratio[i, s] - z))))
    expected = torch.stack(values).mean()
    assert sum(float(loss.total) for loss in losses) == pytest.approx(float(expected), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference.float(), atol=1e-6, rtol=1e-4)


def test_the_loss_and_its_gradient_are_trls() -> None:
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(5) < torch.tensor([[5], [2], [4], [1]])
    logp = (torch.randn(4, 5, generator=generator, dtype=torch.float64) - 2).requires_grad_()
    reference = torch.randn(4, 5, generator=generator, dtype=torch.float64) - 2
    for good in (torch.tensor([1.0, -1.0, -1.0, 1.0]), torch.tensor([-1.0, -1.0, -1.0, -1.0])):
        wanted = kto_loss(logp, reference, mask, good > 0, 0.3, (1.0, 0.6))
        policy = Given(logp, logp.detach(), mask, 4, reference)
        rows = Experience(policy.trajectory, None, good, torch.ones(4, dtype=torch.bool))
        learner = method("kto", beta=0.3, undesirable_weight=0.6)
        found = sum(loss.total for loss in learner.losses(policy, rows))  # type: ignore[arg-type]
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
        expected = torch.autograd.grad(wanted, logp)
        torch.testing.assert_close(torch.autograd.grad(found, logp), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("token_like", [False, True])
def test_gpo_is_the_square_of_what_the_score_asks_for(token_like: bool) -> None:
    """(l - (r - mean) / beta)^2 in a float64 loop; its optimum is the base tilted by exp(r / beta)."""
    learner, policy = method("gpo", group=4, beta=0.4), ToyPolicy(token_like=token_like, rows_together=4)
    with torch.no_grad():
        policy.delta += 0.1 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(1))
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    replayed = policy.replay(experience.trajectory, range(16), versus="reference")
    ratio = (replayed.score - replayed.versus_score).double()
    ratio = ratio.sum(1, keepdim=True) if token_like else ratio
    total, group = experience.scores.total.double(), experience.trajectory.group
    wanted = torch.stack([(total[i] - total[group == group[i]].mean()) / 0.4 for i in range(16)])
    expected = (ratio - wanted[:, None]).square().mean()
    assert sum(float(loss.total.detach()) for loss in losses) == pytest.approx(float(expected), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference.float(), atol=1e-5, rtol=1e-4)


def test_the_first_loss_is_a_half_and_ties_teach_nothing() -> None:
    learner, policy = method("kto", group=4), ToyPolicy(token_like=True)
    experience = experience_of(learner, policy, ToyReward(dark=range(4)))
    assert not experience.counted.any()
    assert list(learner.losses(policy, experience)) == []
    _, losses = backward(learner, policy, experience_of(learner, policy))
    assert mean(losses, "loss") == pytest.approx(0.5)
    assert mean(losses, "kto/z") == 0.0
    assert math.isfinite(mean(losses, "rewards/chosen"))
    with pytest.raises(UsageError, match="compares siblings"):
        method("kto", group=1)
