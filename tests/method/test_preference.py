"""Preferences over recorded steps on a toy policy: D3PO, and its margin of several objectives."""

from __future__ import annotations

import pytest
import torch

from genalign.method.preference_losses import dpo_loss
from genalign.method.updates import packed
from genalign.types import UsageError
from tests.helpers.learners import LOG2, backward, disturbed, experience_of, mean, method
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward, make_scores


@pytest.mark.parametrize("token_like", [False, True])
def test_first_preference_loss_is_log_2(token_like):
    learner, policy = method("d3po", group=4), ToyPolicy(token_like=token_like)
    experience = experience_of(learner, policy)
    assert len(experience.pairs) == 4
    _, losses = backward(learner, policy, experience)
    assert sum(float(loss.total) for loss in losses) == pytest.approx(LOG2, rel=1e-6)
    assert mean(losses, "loss") == pytest.approx(LOG2, rel=1e-7)
    assert mean(losses, "rewards/chosen") == mean(losses, "rewards/rejected") == 0.0
    assert len(losses) == 4 * (1 if token_like else policy.steps)


@pytest.mark.parametrize("token_like", [False, True])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "simpo"])
def test_one_example_is_one_replay(token_like, loss):
    """A float64 loop over pairs and steps (or pairs, where one replay yields a whole sequence)."""
    learner = method("dpo", group=4, loss=loss, beta=0.3, gamma=0.2 if loss == "simpo" else 0.0)
    policy = ToyPolicy(token_like=token_like)
    with torch.no_grad():
        policy.delta += 0.1 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(1))
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    replayed = policy.replay(experience.trajectory, range(16), versus="reference")
    score = (replayed.score if loss == "simpo" else replayed.score - replayed.versus_score).double()
    score = score.sum(1, keepdim=True) if token_like else score
    if loss in ("ipo", "simpo"):
        score = score / (DIMS * (policy.steps if token_like else 1))
    values = []
    for win, lose in experience.pairs.tolist():
        for s in range(score.shape[1]):
            gap = score[win, s] - score[lose, s]
            values.append(
                {
                    "sigmoid": -torch.log(torch.sigmoid(0.3 * gap)),
                    "hinge": (1 - 0.3 * gap).clamp(min=0),
                    "ipo": (gap - 1 / 0.6) ** 2,
                    "simpo": -torch.log(torch.sigmoid(0.3 * gap - 0.2)),
                }[loss]
            )
    expected = torch.stack(values).mean()
    assert sum(float(x.total) for x in losses) == pytest.approx(float(expected), rel=1e-4)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    margins = [
        0.3 * float(score[win, s] - score[lose, s])
        for win, lose in experience.pairs.tolist()
        for s in range(score.shape[1])
    ]
    assert mean(losses, "rewards/margins") == pytest.approx(sum(margins) / len(margins), rel=1e-3, abs=1e-5)
    assert mean(losses, "rewards/accuracies") == pytest.approx(sum(m > 0 for m in margins) / len(margins))
    assert ("reference" in learner.needs) == (loss != "simpo")


def scores_of(policy: ToyPolicy, experience) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-ratios and log-probabilities per dim of winners and losers, (P,2) each, of whole rows."""
    replayed = policy.replay(experience.trajectory, range(16), versus="reference")
    ratio = (replayed.score - replayed.versus_score).sum(1)
    return ratio[experience.pairs], replayed.score.sum(1)[experience.pairs] / (DIMS * policy.steps)


def moved_policy() -> ToyPolicy:
    policy = ToyPolicy(token_like=True)
    with torch.no_grad():
        policy.delta += 0.1 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(1))
    return policy


def test_rpo_adds_the_winners_likelihood_and_selm_the_samples_log_ratio() -> None:
    policy = moved_policy()
    plain, rpo, selm, offline = (
        method("dpo", group=4),
        method("rpo", group=4, sft_weight=0.3),
        method("selm", group=4, optimism=0.2),
        method("dpo", group=4, optimism=-0.2),
    )
    experience = experience_of(plain, policy)
    ratio, likelihood = scores_of(policy, experience)

    def total(learner) -> torch.Tensor:
        return sum(loss.total for loss in learner.losses(policy, experience))

    base = total(plain)
    torch.testing.assert_close(total(rpo) - base, -0.3 * likelihood[:, 0].mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total(selm) - base, 0.2 * 0.1 * ratio.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total(offline) - base, -0.2 * 0.1 * ratio.mean(), rtol=1e-4, atol=1e-5)


class Guiding:
    """A guide whose scores are given."""

    def __init__(self, score: torch.Tensor) -> None:
        self.given = score

    def score(self, policy, trajectory, rows, steps) -> torch.Tensor:
        return self.given[list(rows)][:, list(steps)]


@pytest.mark.parametrize("pair_rule", ["best_worst", "all"])
def test_tgdpo_weighs_each_step_by_its_guide(pair_rule) -> None:
    """-log s(sum_t beta (1 + a beta g_t) l_t of the winner - sum_t beta (1 - a beta g_t) l_t of the loser), a loop."""
    learner, policy = method("dpo", group=4, beta=0.3, pair_rule=pair_rule), disturbed(token_like=True)
    experience = experience_of(learner, policy)
    replayed = policy.replay(experience.trajectory, range(16), versus="reference")
    ratio = (replayed.score - replayed.versus_score).double()
    lead = torch.randn(16, 3, generator=torch.Generator().manual_seed(2)).double()
    plain, _ = backward(learner, policy, experience)
    learner.guide = Guiding((lead + replayed.versus_score).float())
    learner.settings = learner.settings.model_copy(update={"guidance": 0.5})
    values = []
    for win, lose in experience.pairs.tolist():
        won = sum((1 + 0.15 * lead[win, t]) * ratio[win, t] for t in range(3))
        lost = sum((1 - 0.15 * lead[lose, t]) * ratio[lose, t] for t in range(3))
        values.append(-torch.log(torch.sigmoid(0.3 * (won - lost))))
    expected = torch.stack(values).mean()
    gradient, losses = backward(learner, policy, experience)
    assert sum(float(x.total.detach()) for x in losses) == pytest.approx(float(expected), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    learner.guide = Guiding(replayed.versus_score)  # that is the base itself
    same, _ = backward(learner, policy, experience)
    torch.testing.assert_close(same, plain, atol=1e-6, rtol=1e-5)


def test_soft_labels_follow_the_rewards_lead() -> None:
    """Cross entropy between sigmoid of the lead and of the log-ratio, as in Direct Nash Optimization."""
    learner, policy = method("dno", group=4, soft_labels=0.5), moved_policy()
    experience = experience_of(learner, policy)
    assert len(experience.pairs) == 4 * 6
    ratio, _ = scores_of(policy, experience)
    p = torch.sigmoid((experience.scores.total[experience.pairs] / 0.5).diff(dim=1).neg())[:, 0]
    q = torch.sigmoid(0.1 * (ratio[:, 0] - ratio[:, 1]))
    expected = -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    found = sum(loss.total for loss in learner.losses(policy, experience))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "loss ipo takes no label_smoothing or soft_labels; drop them"),
        ({"loss": "exo"}, "exo needs method.label_smoothing above 0"),
        ({"soft_labels": 1.0, "label_smoothing": 0.1}, "soft_labels are made of rewards"),
        ({"loss": "simpo", "optimism": 0.1}, "optimism needs a reference"),
    ],
)
def test_settings_that_a_loss_cannot_take_are_refused(keys, said) -> None:
    with pytest.raises(UsageError, match=said):
        method("dpo", **keys)


def test_pairs_join_siblings_and_ties_are_dropped():
    learner, policy = method("d3po", group=4), ToyPolicy()
    experience = experience_of(learner, policy, ToyReward(dark=[2]))
    total, group = experience.scores.total, experience.trajectory.group
    assert {int(group[w]) for w, _ in experience.pairs.tolist()} == {0, 1, 3}
    for win, lose in experience.pairs.tolist():
        assert group[win] == group[lose]
        assert total[win] == total[group == group[win]].max()
        assert total[lose] == total[group == group[win]].min()
    every = experience_of(method("d3po", group=4, pair_rule="all"), policy)
    assert len(every.pairs) == 4 * 6


@pytest.mark.parametrize(("rows", "many"), [(4, 3), (8, 2), (9, 2), (12, 1), (1, 18), (2, 18), (3, 9)])
def test_a_micro_batch_of_pairs_has_as_many_samples_as_one_of_rows(rows, many):
    """Three groups of four, every two of each: 6 pairs of 4 samples a group."""
    pairs = torch.tensor([[4 * g + a, 4 * g + b] for g in range(3) for a in range(4) for b in range(a)])
    packs = packed(pairs, rows)
    assert torch.cat(packs).tolist() == list(range(len(pairs)))
    assert len(packs) == many
    assert max(len(torch.unique(pairs[pack])) for pack in packs) <= max(rows, 2)
    assert packed(pairs[:0], rows) == []


class Weighed(ToyReward):
    """How bright the image is, and how bright its first half: two objectives with weights."""

    aspects = ("a", "b")

    def __init__(self, *weights: float, shift: float = 0.0) -> None:
        super().__init__()
        self.own_weights, self.shift = weights, shift

    def __call__(self, prompts, media, group=None):
        bright = super().__call__(prompts, media).values
        half = media["image"].data.flatten(1)[:, :3].mean(1, keepdim=True)
        return make_scores(torch.cat([bright, half + self.shift], 1), weights=self.own_weights)


@pytest.mark.parametrize("token_like", [False, True])
def test_other_objectives_are_the_margin_of_modpo(token_like):
    """-log s((beta D log-ratio - w_b (b_w - b_l)) / w_a) in a float64 loop, for weights that add up to 1."""
    policy = ToyPolicy(token_like=token_like)
    with torch.no_grad():
        policy.delta += 0.1 * torch.randn(3, DIMS, generator=torch.Generator().manual_seed(1))
    learner = method("dpo", group=4, beta=0.3, objective="a")
    experience = experience_of(learner, policy, Weighed(3.0, 1.0))
    gradient, losses = backward(learner, policy, experience)
    replayed = policy.replay(experience.trajectory, range(16), versus="reference")
    score = (replayed.score - replayed.versus_score).double()
    score = score.sum(1, keepdim=True) if token_like else score
    a, b = experience.scores.values.double().T
    values = []
    for win, lose in experience.pairs.tolist():
        assert a[win] == a[experience.trajectory.group == experience.trajectory.group[win]].max()
        for s in range(score.shape[1]):
            z = 0.3 * (score[win, s] - score[lose, s]) - 0.25 * (b[win] - b[lose])
            values.append(-torch.log(torch.sigmoid(z / 0.75)))
    expected = torch.stack(values).mean()
    assert sum(float(x.total) for x in losses) == pytest.approx(float(expected), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-3)
    moved, _ = backward(learner, policy, experience_of(learner, policy, Weighed(3.0, 1.0, shift=5.0)))
    torch.testing.assert_close(moved, gradient, atol=1e-5, rtol=1e-4)  # what both members of a pair have is nothing


def test_one_objective_of_all_weight_is_dpo():
    policy = ToyPolicy()
    with torch.no_grad():
        policy.delta += 0.1
    alone, plain = method("dpo", group=4, objective="a"), method("dpo", group=4)
    one, _ = backward(alone, policy, experience_of(alone, policy, Weighed(2.0, 0.0)))
    other, _ = backward(plain, policy, experience_of(plain, policy))
    assert torch.equal(one, other)
    for weights, name in (((1.0, 1.0), "c"), ((1.0, 0.0), "b"), ((1.0, -1.0), "b")):
        with pytest.raises(UsageError, match=f"objective is '{name}', but the reward's weighted aspects are a"):
            experience_of(method("dpo", group=4, objective=name), policy, Weighed(*weights))


def test_a_tilt_is_learnt_that_suits_both_objectives():
    """MODPO's optimum for labels drawn by Bradley and Terry is exp((w_a a + w_b b) / beta): gradient 0 there."""
    a, b, w, beta = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 0.0, 0.5]), (0.7, 0.3), 0.5
    tilt = (w[0] * a + w[1] * b) / beta
    logits = tilt.double().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            win = torch.sigmoid(a[i] - a[j])
            shifted = logits - w[1] * b / beta
            loss = loss + win * dpo_loss("sigmoid", shifted[i], shifted[j], beta / w[0])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-6
