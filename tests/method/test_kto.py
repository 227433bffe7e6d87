"""KTO on a toy policy: a float64 loop over samples, and TRL's formula."""

from __future__ import annotations

import math

import pytest
import torch

from genalign.types import UsageError
from tests.helpers.learners import backward, experience_of, mean, method
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward


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


def test_the_first_loss_is_a_half_and_ties_teach_nothing() -> None:
    learner, policy = method("kto", group=4), ToyPolicy(token_like=True)
    experience = experience_of(learner, policy, ToyReward(dark=range(4)))
    assert experience.global_rows == 0
    assert list(learner.losses(policy, experience)) == []
    _, losses = backward(learner, policy, experience_of(learner, policy))
    assert mean(losses, "loss") == pytest.approx(0.5)
    assert mean(losses, "kto/z") == 0.0
    assert math.isfinite(mean(losses, "rewards/chosen"))
    with pytest.raises(UsageError, match="compares siblings"):
        method("kto", group=1)
