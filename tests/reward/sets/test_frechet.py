"""The Fréchet distance against closed forms, scipy and torchmetrics; its credit, counted in operations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from genalign.reward.sets.frechet import Frechet, Moments, frechet_infinity
from genalign.types import UsageError
from tests.helpers.feature_sets import Operations, on_two_ranks, rows


def textbook_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """By scipy's square root of the product, which is neither symmetric nor safe."""
    s, sigma = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ sigma)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + sigma - 2 * root.real))


def test_frechet_is_scipys_and_torchmetrics():
    x, y = rows(80, 12, 1) * 1.3, rows(300, 12, 2)
    value = float(Frechet(Moments.of(y)).value(x))
    assert value == pytest.approx(textbook_frechet(x.numpy(), y.numpy()), abs=1e-8)
    theirs = FrechetInceptionDistance(feature=torch.nn.Flatten(), input_img_size=(3, 2, 2), normalize=True)
    theirs.set_dtype(torch.float64)
    theirs.update(y.reshape(-1, 3, 2, 2), real=True)
    theirs.update(x.reshape(-1, 3, 2, 2), real=False)
    assert float(theirs.compute()) == pytest.approx(value, abs=1e-6)


def test_frechet_closed_forms():
    y = rows(200, 6, 3)
    distance, shift = Frechet(Moments.of(y)), torch.arange(6.0).double()
    assert abs(distance.value(y)) < 1e-8
    assert float(distance.value(y + shift)) == pytest.approx(float(shift @ shift), abs=1e-8)
    line, other = rows(50, 1, 4), 2.5 * rows(70, 1, 5) + 1
    expected = (line.mean() - other.mean()) ** 2 + (line.std() - other.std()) ** 2
    assert float(Frechet(Moments.of(other)).value(line)) == pytest.approx(float(expected), abs=1e-10)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).double())[0]
    x = 0.7 * rows(90, 6, 6)
    plain = float(distance.value(x))
    assert float(Frechet(Moments.of(y @ turn)).value(x @ turn)) == pytest.approx(plain, abs=1e-8)
    assert float(Frechet(Moments.of(3 * y)).value(3 * x)) == pytest.approx(9 * plain, abs=1e-7)
    assert float(Frechet(Moments.of(x)).value(y)) == pytest.approx(plain, abs=1e-8)
    assert float(distance.value(x.flip(0))) == pytest.approx(plain, abs=1e-10)


@pytest.mark.parametrize(("count", "exemplars"), [(1, 40), (2, 40), (5, 8), (30, 12), (64, 700)])
def test_frechet_of_few_rows_is_that_of_regularised_covariances(count: int, exemplars: int):
    """Rank-deficient sides are the limit of full-rank ones."""
    x, y = rows(count, 32, 7), rows(exemplars, 32, 8)
    value = Frechet(Moments.of(y)).value(x)
    s = torch.cov(x.T) if count > 1 else torch.zeros(32, 32).double()
    sigma, tiny = torch.cov(y.T), 1e-13 * torch.eye(32).double()
    values, vectors = torch.linalg.eigh(sigma + tiny)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ (s + tiny) @ root).clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + s.trace() + sigma.trace() - 2 * cross
    assert torch.isfinite(value)
    assert float(value) == pytest.approx(float(expected), abs=2e-4)
    same = Frechet(Moments.of(y)).value(torch.cat([y, y, y, y]))  # ddof 1 scales a repeated set's covariance
    scale = math.sqrt((4 * exemplars) / (4 * exemplars - 1) * (exemplars - 1) / exemplars)
    assert float(same) == pytest.approx(float(sigma.trace()) * (1 - scale) ** 2, abs=1e-7)


@pytest.mark.parametrize("count", [6, 40])
def test_frechet_gradient_is_the_finite_difference(count: int):
    x = rows(count, 9, 9).requires_grad_()
    distance = Frechet(Moments.of(rows(100, 9, 10)))
    assert torch.autograd.gradcheck(distance.value, x, eps=1e-6, atol=1e-6)
    (at_home,) = torch.autograd.grad(Frechet(Moments.of(x.detach())).value(x), x)
    if count > 9:
        assert at_home.abs().max() < 1e-8


def test_frechet_gradient_is_finite_where_rows_repeat():
    x = rows(3, 9, 9).repeat(4, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(Frechet(Moments.of(rows(100, 9, 10))).value(x), x)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 1e-3


def test_each_row_alone_and_each_clip_of_frames():
    distance, x = Frechet(Moments.of(rows(100, 9, 1))), rows(20, 9, 2)
    alone = torch.stack([distance.value(row[None]) for row in x])
    torch.testing.assert_close(distance.each(x[:, None]), alone)
    clips = torch.stack([distance.value(x[i : i + 5]) for i in (0, 5, 10, 15)])
    torch.testing.assert_close(distance.each(x.reshape(4, 5, 9)), clips)


def test_moments_merge_in_any_chunks_and_over_ranks(monkeypatch):
    x = rows(103, 7, 11) + 1e4  # a one-pass sum of squares loses eight digits here
    whole = Moments.of(x)
    for sizes in ([103], [1] * 103, [1, 50, 2, 50], [60, 0, 43]):
        merged = Moments.of(x[:0])
        for part in x.split(sizes):
            merged = merged.merge(Moments.of(part))
        assert merged.count == 103
        torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.covariance, torch.cov(x.T), rtol=1e-10, atol=1e-10)
    joined = on_two_ranks(
        monkeypatch, "genalign.reward.sets.frechet", lambda r: Moments.of(x[r::2][: 40 + r]).over_ranks()
    )
    both = Moments.of(torch.cat([x[0::2][:40], x[1::2][:41]]))
    for moments in joined:
        assert moments.count == 81
        torch.testing.assert_close(moments.covariance, both.covariance, rtol=1e-10, atol=1e-10)


def test_the_limit_of_many_rows_has_no_bias_left():
    x, y = (torch.randn(4096, 24, generator=torch.Generator().manual_seed(s)).double() for s in (0, 1))
    law = Moments(10**9, torch.zeros(24).double(), (10**9 - 1) * torch.eye(24).double())
    plain, limit = float(Frechet(law).value(x)), frechet_infinity(x, law)
    assert plain > 0.025  # d (d + 1) / (4 n) and the mean's d / n
    assert abs(limit) < plain / 4
    assert limit == frechet_infinity(x, law)
    wide = torch.randn(4096, 64, generator=torch.Generator().manual_seed(2)).double()
    law = Moments(10**9, torch.zeros(64).double(), (10**9 - 1) * torch.eye(64).double())
    assert float(Frechet(law).value(wide)) > 0.2
    assert abs(frechet_infinity(wide, law)) < 0.06  # subsets drawn with replacement keep almost all of the bias
    with pytest.raises(UsageError, match="needs 192 rows, not 100"):
        frechet_infinity(y[:100], law)


@pytest.mark.parametrize("credit", ["leave_one_out", "swapped"])
def test_all_frechet_credit_costs_a_hundredth_of_recomputing_it(credit: str):
    count = dims = 512
    distance, x, others = Frechet(Moments.of(rows(2048, dims, 1))), rows(count, dims, 2), rows(count, dims, 3)
    sets_of = (x,) if credit == "leave_one_out" else (x, others)
    with Operations() as all_at_once:
        credits = getattr(distance, credit)(*sets_of)
    with Operations() as one:
        distance.value(x[1:])
    assert all_at_once.decompositions <= 2
    assert one.decompositions == 1
    assert all_at_once.total <= count * one.total / 100
    some = range(0, count, 64)  # each by one full computation
    if credit == "leave_one_out":
        expected = [distance.value(torch.cat([x[:i], x[i + 1 :]])) for i in some]
    else:
        expected = [distance.value(torch.cat([x[:i], others[i : i + 1], x[i + 1 :]])) for i in some]
    assert (credits[list(some)] - torch.stack(expected)).abs().max() < 1e-5
    assert credits.std() > 1e-3  # a hundred times the tolerance
