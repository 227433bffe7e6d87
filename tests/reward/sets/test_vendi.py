"""The Vendi score of copies of orthogonal rows, and of the published kernel."""

import pytest
import torch

from genalign.reward.sets.vendi import Vendi
from tests.helpers.feature_sets import rows


def test_vendi_of_copies_of_orthogonal_rows_and_of_the_published_kernel():
    """Invariant 27."""
    eye = torch.eye(6, dtype=torch.float64)
    for order in (1, 2):
        of = Vendi(order)
        assert float(of.value(eye[:1].repeat(5, 1))) == pytest.approx(1)
        assert float(of.value(eye)) == pytest.approx(6)
        x = rows(9, 4, 1)
        assert float(of.value(x.repeat(3, 1))) == pytest.approx(float(of.value(x)))
        assert float(of.value(5 * x)) == pytest.approx(float(of.value(x)))
        assert 1 <= float(of.value(x)) <= 9
        assert torch.autograd.gradcheck(of.value, x.clone().requires_grad_())
    assert float(Vendi(2).value(x)) < float(Vendi(1).value(x))
    published = torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]).double()
    root = torch.linalg.cholesky(published)
    assert float(Vendi(1).value(root)) == pytest.approx(2.1573, abs=1e-4)
    shares = torch.linalg.eigvalsh(published / 3)
    assert float(Vendi(2).value(root)) == pytest.approx(float(1 / shares.square().sum()))
