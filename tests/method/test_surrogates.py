"""Surrogates of the policy gradient: float64 loops, and TRL's GRPOTrainer on the same numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from genalign.method.surrogates import cispo, k3, over_steps, ppo_clip, sapo
from genalign.types import Experience, UsageError
from tests.helpers.learners import Given, experience_of, method
from tests.helpers.toy_policy import ToyPolicy
from tests.helpers.trl_trainers import grpo_loss, rloo_loss

EPSILONS = {"clip_nats": (-math.log(0.8), math.log(1.3))}


def test_ppo_clip_is_the_loop_and_pessimistic():
    torch.manual_seed(4)
    logp = (torch.randn(6, 5) * 0.5).requires_grad_()
    old, advantage = torch.randn(6, 5) * 0.1, torch.randn(6, 1)
    loss, acts = ppo_clip(logp, old, advantage, 0.3, 0.2)
    for i in range(6):
        for s in range(5):
            ratio, a = math.exp(float((logp - old)[i, s].detach())), float(advantage[i])
            bounded = min(max(ratio, math.exp(-0.3)), math.exp(0.2))
            assert float(loss[i, s].detach()) == pytest.approx(max(-a * ratio, -a * bounded), rel=1e-5)
            assert bool(acts[i, s]) == ((a > 0 and ratio > math.exp(0.2)) or (a < 0 and ratio < math.exp(-0.3)))
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert not gradient[acts].any()
    assert (gradient[~acts] != 0).all()
    assert acts.any()


def test_on_policy_gradient_is_reinforce():
    logp, advantage = torch.randn(4, 3, requires_grad=True), torch.randn(4, 1)
    loss, acts = ppo_clip(logp, logp.detach(), advantage, 0.2, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(gradient, -advantage.expand(4, 3))
    assert not acts.any()


def test_a_stale_log_ratio_stays_finite():
    logp = torch.tensor([500.0, -500.0, 500.0, -500.0], requires_grad=True)
    loss, _ = ppo_clip(logp, torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2, 0.2)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logp.grad.isfinite().all()


def test_k3_estimates_kl_and_is_never_negative():
    torch.manual_seed(6)
    p, q = torch.randn(5, dtype=torch.float64).log_softmax(0), torch.randn(5, dtype=torch.float64).log_softmax(0)
    assert float((p.exp() * k3(p, q)).sum()) == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-12)
    assert (k3(p, q) >= 0).all()
    assert not k3(p, p).any()


def test_cispo_is_reinforce_with_a_bounded_weight() -> None:
    logp = torch.tensor([[0.0, 2.0, -3.0]], requires_grad=True)
    loss, bounded = cispo(logp, torch.zeros(1, 3), torch.tensor([[2.0]]), math.log(1.5))
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(gradient, -2.0 * torch.tensor([[1.0, 1.5, math.exp(-3.0)]]))
    assert bounded.tolist() == [[False, True, False]]


def test_sapo_is_reinforce_at_ratio_1_and_fades_on_both_sides() -> None:
    log_ratio = torch.tensor([[-3.0, -1.0, 0.0, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    for advantage, tau in ((1.0, 0.7), (-1.0, 1.9)):
        loss, faded = sapo(log_ratio, torch.zeros(1, 5), log_ratio.new_tensor([[advantage]]), (0.7, 1.9))
        (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
        for found, value, weak in zip(gradient[0].tolist(), log_ratio[0].tolist(), faded[0].tolist(), strict=True):
            ratio = math.exp(value)
            gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
            assert found == pytest.approx(-advantage * ratio * 4 * gate * (1 - gate), rel=1e-5)
            assert weak == (4 * gate * (1 - gate) < 0.5)
        assert float(gradient[0, 2]) == pytest.approx(-advantage)


def test_gspos_ratio_is_the_geometric_mean_of_its_steps() -> None:
    x, mask = (
        torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]]),
        torch.tensor([[True, True, False], [True, False, False]]),
    )
    assert over_steps(x, mask, mean=True)[:, 0].tolist() == [1.5, 4.0]
    assert over_steps(x, mask, mean=False)[:, 2].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("rows_together", [4, 2])
@pytest.mark.parametrize(
    ("name", "ours", "loss_type", "theirs"),
    [
        ("grpo", EPSILONS, "bnpo", {}),
        ("grpo", {"loss_per": "row_mean", **EPSILONS}, "grpo", {}),
        ("dr-grpo", EPSILONS, "dr_grpo", {}),
        ("dapo", EPSILONS, "dapo", {}),
        ("gspo", EPSILONS, "grpo", {"importance_sampling_level": "sequence"}),
        ("cispo", {"clip_nats": (1.0, math.log(1.2))}, "cispo", {"epsilon_high": 1.2}),
        ("sapo", {}, "sapo", {}),
        ("grpo", {"kl_beta": 0.07, **EPSILONS}, "bnpo", {"beta": 0.07}),
        ("dapo", {"kl_beta": 0.07, **EPSILONS}, "dapo", {"beta": 0.07}),
    ],
)
def test_the_grpo_family_has_trls_losses_and_gradients(
    name: str, ours: dict[str, Any], loss_type: str, theirs: dict[str, Any], rows_together: int
) -> None:
    generator = torch.Generator().manual_seed(5)
    logp = (torch.randn(4, 6, generator=generator, dtype=torch.float64) * 0.4 - 1).requires_grad_()
    old = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 0.3 - 1
    advantage = torch.randn(4, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    reference = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 0.3 - 1
    wanted, _ = grpo_loss(logp, old, reference, advantage, mask, loss_type, **theirs)
    if name == "dr-grpo":  # which divides by the longest completion allowed as well
        wanted = wanted * 6
    policy = Given(logp, old, mask, rows_together, reference)
    rows = Experience(policy.trajectory, None, advantage, torch.ones(4, dtype=torch.bool))
    found = sum(loss.total for loss in method(name, **ours).losses(policy, rows))  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    expected = torch.autograd.grad(wanted, logp, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found, logp), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rows_together", [4, 2])
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_rloo_has_trls_gradient_where_it_samples_and_with_whole_rows_as_actions_its_loss(
    spread: float, rows_together: int
) -> None:
    generator = torch.Generator().manual_seed(6)
    old = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 0.3 - 1
    logp = (old + spread * torch.randn(4, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(4, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    wanted = rloo_loss(logp, old, advantage, mask)
    expected = torch.autograd.grad(wanted, logp, retain_graph=True)
    policy = Given(logp, old, mask, rows_together)
    rows = Experience(policy.trajectory, None, advantage, torch.ones(4, dtype=torch.bool))
    whole = method("rloo", ratio="row_sum", loss_per="row_mean", **EPSILONS)
    found = sum(loss.total for loss in whole.losses(policy, rows))  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(torch.autograd.grad(found, logp), expected, rtol=1e-6, atol=1e-9)
    if spread == 0:
        plain = sum(loss.total for loss in method("rloo").losses(policy, rows))  # type: ignore[arg-type]
        torch.testing.assert_close(torch.autograd.grad(plain, logp), expected, rtol=1e-6, atol=1e-9)


def test_the_log_is_trls() -> None:
    torch.manual_seed(5)
    logp, old, ref = torch.randn(4, 6) * 0.4, torch.randn(4, 6) * 0.1, torch.randn(4, 6) * 0.2
    advantage, mask = torch.randn(4), torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
    theirs, logged = grpo_loss(logp, old, ref, advantage, mask, "bnpo", beta=0.05)
    loss, acts = ppo_clip(logp, old, advantage[:, None], *EPSILONS["clip_nats"])
    kl = k3(logp, ref)
    assert float(((loss + 0.05 * kl) * mask).sum() / mask.sum()) == pytest.approx(float(theirs), rel=1e-5)
    for name, value in {"clip_ratio/region_mean": acts, "kl": kl}.items():
        assert float((value * mask).sum() / mask.sum()) == pytest.approx(logged[name][0], rel=1e-4)


def test_a_ratio_of_whole_rows_needs_whole_rows() -> None:
    with pytest.raises(UsageError, match=r"replays 1 of 3 at a time; set policy\.sampler\.window=1"):
        experience_of(method("gspo"), ToyPolicy())
    experience_of(method("gspo"), ToyPolicy(steps=1))


def test_p3o_over_all_pairs_is_rloo() -> None:
    """The gradient of sum over pairs of (r_i - r_j)/2 (l_i - l_j), which is P3O's at ratio 1, against that of RLOO."""
    learner, policy = method("rloo", group=4), ToyPolicy(token_like=True)
    experience = experience_of(learner, policy)
    reward, group = experience.scores.total, experience.trajectory.group
    policy.delta.grad = None
    for loss in learner.losses(policy, experience):
        loss.total.backward()
    logp = policy.replay(experience.trajectory, range(16)).score.sum(1)
    pairs = [(i, j) for i in range(16) for j in range(i) if group[i] == group[j]]
    pairwise = torch.stack([-(reward[i] - reward[j]) / 2 * (logp[i] - logp[j]) for i, j in pairs]).mean()
    (expected,) = torch.autograd.grad(pairwise, policy.delta)
    torch.testing.assert_close(policy.delta.grad, expected, rtol=1e-4, atol=1e-6)
