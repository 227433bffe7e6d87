"""The kernel distance and coverage in loops."""

import math

import pytest
import torch

from genalign.reward.sets.kernel import Coverage, KernelDistance
from tests.helpers.feature_sets import rows


def test_kernel_distance_is_the_double_sum():
    x, y = rows(15, 4, 1), rows(20, 4, 2)
    of = KernelDistance(y)
    assert of.bandwidth == pytest.approx(float(torch.pdist(y).median()))
    total = 0.0
    for a, b, sign in ((x, x, 1), (y, y, 1), (x, y, -2)):
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if sign < 0 or i != j]
        values = [math.exp(-float((a[i] - b[j]).square().sum()) / (2 * of.bandwidth**2)) for i, j in pairs]
        total += sign * sum(values) / len(pairs)
    assert float(of.value(x)) == pytest.approx(total, abs=1e-12)
    assert torch.autograd.gradcheck(of.value, x.clone().requires_grad_())


def test_kernel_distance_of_one_law_is_0_on_average_and_sometimes_below():
    of = KernelDistance(rows(400, 4, 0))
    values = torch.stack([of.value(rows(40, 4, seed)) for seed in range(1, 60)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values)) + 1e-3
    assert (values < 0).any()


def test_coverage_counts_reached_exemplars():
    x, y = rows(12, 3, 1), rows(30, 3, 2)
    of = Coverage(y, neighbours=3)
    apart = torch.cdist(y, y)
    reach = apart.sort(1).values[:, 3]
    expected = ((torch.cdist(x, y) <= reach).any(0)).double().mean()
    assert float(of.value(x)) == pytest.approx(float(expected))
    assert 0 < float(of.value(x)) < 1
    assert float(of.value(y)) == 1
