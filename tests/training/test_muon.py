"""torch's own optimizer, whose iteration is in bfloat16, and singular values in float64 are the oracles."""

from __future__ import annotations

import torch
from torch import nn

from genalign.training.muon import Muon, newton_schulz

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al. (2024)


def test_a_step_is_torchs_up_to_bfloat16() -> None:
    found = []
    for kind in (torch.optim.Muon, Muon):
        torch.manual_seed(0)
        layer = nn.Linear(24, 10, bias=False)
        optimizer = kind(layer.parameters(), lr=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 24)).square().sum().backward()
            optimizer.step()
        found.append(layer.weight.detach().clone())
    assert not torch.equal(*found)
    torch.testing.assert_close(*found, rtol=0.02, atol=5e-3)


def test_the_iteration_is_float32_and_its_singular_values_are_those_of_the_polynomial() -> None:
    """Of each singular value s the iteration makes a s + b s^3 + c s^5, five times."""
    a, b, c = COEFFICIENTS
    for shape in ((12, 5), (5, 12)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        made = newton_schulz(matrix, COEFFICIENTS, 5, 1e-7)
        left, values, right = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
        for _ in range(5):
            values = a * values + b * values**3 + c * values**5
        torch.testing.assert_close(made, (left @ values.diag() @ right).float(), rtol=1e-4, atol=1e-5)


def test_torch_is_left_as_it_was() -> None:
    from torch.optim import _muon

    before = _muon._zeropower_via_newtonschulz
    weight = nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.eye(3)
    Muon([weight]).step()
    assert _muon._zeropower_via_newtonschulz is before
