"""The losses of preferences against float64 loops, closed forms and TRL."""

import math

import pytest
import torch
from scipy import integrate, stats

from genalign.reward.fit.losses import (
    between,
    bradley_terry,
    centre,
    expected_win,
    gradient_penalty,
    hedge,
    mixture,
    normal_kl,
    regression,
    settle,
    skew_score,
    tie_probability,
    ties,
    yes_no,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


DELTA, P = 2 * draw(40), torch.tensor([1.0, 0.0, 0.5, 0.8] * 10, dtype=torch.float64)


@pytest.mark.parametrize("margin", [0.0, 0.57])
def test_bradley_terry_in_a_loop(margin: float):
    expected = [
        -p * math.log(sigmoid(d - margin)) - (1 - p) * math.log(sigmoid(-d - margin))
        for d, p in zip(DELTA.tolist(), P.tolist(), strict=True)
    ]
    assert bradley_terry(DELTA, P, margin).tolist() == pytest.approx(expected, rel=1e-12)
    assert float(bradley_terry(torch.tensor(-1e4), torch.tensor(1.0))) == 1e4  # no overflow


def test_bradley_terry_with_a_margin_of_each_pair_is_trls():
    """TRL's RewardTrainer: -logsigmoid(chosen - rejected - margin) + coefficient (chosen + rejected)^2."""
    chosen, rejected, margin = draw(9, seed=1), draw(9, seed=2), draw(9, seed=3).abs()
    theirs = -torch.nn.functional.logsigmoid(chosen - rejected - margin) + 0.01 * (rejected + chosen) ** 2
    ours = bradley_terry(chosen - rejected, torch.ones(9).double(), margin) + 0.01 * centre(chosen, rejected)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("k", [1.5, 3.0, 5.0])
def test_three_outcomes_sum_to_one_and_are_symmetric(k: float):
    """Invariant 20."""
    win, tie, loss = ((-ties(DELTA, torch.full_like(DELTA, p), k)).exp() for p in (1.0, 0.5, 0.0))
    torch.testing.assert_close(win + tie + loss, torch.ones_like(win), rtol=0, atol=4e-16 * 10)
    torch.testing.assert_close(tie, tie_probability(DELTA, k))
    torch.testing.assert_close((-ties(-DELTA, torch.ones_like(DELTA), k)).exp(), loss)
    at_rest = tie_probability(torch.zeros(1).double(), k)
    assert float(at_rest) == pytest.approx((k - 1) / (k + 1), abs=1e-15)


def test_ties_in_a_loop():
    expected = []
    for d, p in zip(DELTA.tolist(), P.tolist(), strict=True):
        a, b = sigmoid(d - math.log(5)), sigmoid(-d - math.log(5))
        expected.append(-math.log(24 * a * b) if p == 0.5 else -p * math.log(a) - (1 - p) * math.log(b))
    assert ties(DELTA, P, 5.0).tolist() == pytest.approx(expected, rel=1e-12)


def test_yes_no_and_regression_in_a_loop():
    yes, no = 3 * draw(40, seed=4), 3 * draw(40, seed=5)  # token logits
    expected = [
        -p * math.log(math.exp(y) / (math.exp(y) + math.exp(n)))
        - (1 - p) * math.log(math.exp(n) / (math.exp(y) + math.exp(n)))
        for y, n, p in zip(yes.tolist(), no.tolist(), P.tolist(), strict=True)
    ]
    assert yes_no(yes - no, P).tolist() == pytest.approx(expected, rel=1e-10)
    errors = DELTA - P
    assert regression(DELTA, P).tolist() == pytest.approx([e * e / 2 for e in errors.tolist()])
    huber = [e * e / 2 if abs(e) <= 0.7 else 0.7 * (abs(e) - 0.35) for e in errors.tolist()]
    assert regression(DELTA, P, 0.7).tolist() == pytest.approx(huber)


def test_skew_scores_are_antisymmetric_and_hold_a_cycle():
    a, b, scale = draw(7, 6), draw(7, 6, seed=1), draw(7, 3, seed=2).exp()
    block = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    for i in range(7):
        form = torch.block_diag(*(weight * block for weight in scale[i]))
        assert float(skew_score(a, b, scale)[i]) == pytest.approx(float(a[i] @ form @ b[i]), rel=1e-12)
    torch.testing.assert_close(skew_score(a, b), -skew_score(b, a))
    assert not skew_score(a, a).any()
    angle = torch.arange(3).double() * 2 * math.pi / 3
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    beats = skew_score(ring, ring.roll(-1, 0))
    torch.testing.assert_close(beats, torch.full((3,), math.sqrt(3) / 2).double())


def test_gradient_penalty_of_a_known_slope():
    rows, weight = draw(5, 3), torch.tensor([3.0, 0.0, 4.0]).double()
    assert gradient_penalty(lambda x: x @ weight, rows).tolist() == pytest.approx([16.0] * 5)
    assert not gradient_penalty(lambda x: 0.1 * x @ weight, rows).any()
    assert gradient_penalty(lambda x: 0.1 * x @ weight, rows, one_sided=False).tolist() == pytest.approx([0.25] * 5)
    norms = gradient_penalty(lambda x: x.square().sum(1), rows, 0.0)
    torch.testing.assert_close(norms, 4 * rows.square().sum(1))
    bend = torch.nn.Parameter(torch.tensor(2.0).double())  # the penalty trains what it penalises
    gradient_penalty(lambda x: bend * x.sum(1), rows).sum().backward()
    assert bend.grad is not None
    assert float(bend.grad) > 0
    points = between(rows, rows + 1.0)
    assert ((points >= rows) & (points <= rows + 1)).all()


def test_what_votes_settle():
    p = torch.tensor([1.0, 1.0, 0.0, 0.5, 1.0]).double()
    votes = torch.tensor([[2.0, -3.0, -1.0, 0.3, -0.5], [4.0, -1.0, -3.0, 0.1, -0.5]]).double()
    flipped, none = settle(p, votes, "flip", share=0.2)
    assert flipped.tolist() == [1.0, 0.0, 0.0, 0.5, 1.0]  # one of five: the most negative
    assert settle(p, votes, "flip", share=1.0)[0].tolist() == [1.0, 0.0, 0.0, 0.5, 0.0]
    assert not none.any()
    assert settle(p, votes, "margin")[1].tolist() == [3.0, 0.0, 2.0, 0.0, 0.0]
    soft, _ = settle(p, votes, "soften", share=0.2)
    assert soft[3] == 0.5
    for place, vote in ((0, 3.0), (1, -2.0), (4, -0.5)):  # Bayes: a label that is right in 4 of 5, and the vote's odds
        odds = 4 * math.exp(vote)
        assert soft[place].item() == pytest.approx(odds / (1 + odds))
    assert soft[2].item() == pytest.approx(1 / (1 + 4 * math.exp(2.0)))  # the second one was preferred, and voted for


def test_mixture_in_a_loop_and_of_one_reward_is_bradley_terry():
    deltas, router = draw(40, 3), torch.log_softmax(draw(40, 3, seed=1), 1)
    expected = []
    for row, f, p in zip(deltas.tolist(), router.exp().tolist(), P.tolist(), strict=True):
        won = sum(weight * sigmoid(d) for weight, d in zip(f, row, strict=True))
        lost = sum(weight * sigmoid(-d) for weight, d in zip(f, row, strict=True))
        regular = 0.5 * sum(weight * math.log(weight) for weight in f)
        expected.append(-p * math.log(won) - (1 - p) * math.log(lost) + regular)
    assert mixture(deltas, router, P).tolist() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(mixture(deltas[:, :1], torch.zeros(40, 1).double(), P), bradley_terry(deltas[:, 0], P))


def test_hedge_is_the_product_of_its_rounds():
    losses, weights = draw(30, 4).abs(), torch.full((4,), 0.25).double()
    for row in losses:
        weights = weights * (-0.3 * row).exp()
        weights = weights / weights.sum()
    torch.testing.assert_close(hedge(losses, 0.3).exp(), weights)


def test_kl_is_the_integral():
    mean, logvar = torch.tensor([[0.7, -0.2]]).double(), torch.tensor([[-0.9, 0.4]]).double()
    expected = 0.0
    for m, v in zip(mean[0].tolist(), logvar[0].tolist(), strict=True):
        q = stats.norm(m, math.exp(v / 2))
        expected += integrate.quad(lambda x, q=q: q.pdf(x) * (q.logpdf(x) - stats.norm.logpdf(x)), -20, 20)[0]
    assert normal_kl(mean, logvar).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("k", [1.5, 5.0])
def test_the_expected_label_of_ties_is_a_win_and_half_a_tie(k: float):
    """Rao and Kupper (1967) written out: a strength of e^d against 1."""
    for d, found in zip(DELTA.tolist(), expected_win(DELTA, k).tolist(), strict=True):
        strength = math.exp(d)
        win, loss = strength / (strength + k), 1 / (1 + k * strength)
        assert found == pytest.approx(win + (1 - win - loss) / 2, abs=1e-12)
    assert torch.allclose(expected_win(DELTA, k) + expected_win(-DELTA, k), torch.ones_like(DELTA))
