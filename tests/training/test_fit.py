"""Builders of shipped models resume where they were killed."""

import pytest
import torch
from torch import nn

from genalign.training.fit import fit, linears_in_bfloat16


def test_builders_resume_where_they_were_killed(tmp_path):
    class KilledError(Exception):
        pass

    def train(state, die_at=None):
        torch.manual_seed(0)
        net = nn.Linear(3, 1)

        def loss_of(step):
            if step == die_at:
                raise KilledError
            return net(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().mean()

        fit(net, loss_of, steps=10, learning_rate=0.1, state=state, save_every=5)
        return net.weight.detach()

    whole = train(tmp_path / "whole.safetensors")
    with pytest.raises(KilledError):
        train(tmp_path / "killed.safetensors", die_at=7)
    assert torch.equal(whole, train(tmp_path / "killed.safetensors"))


def test_linear_layers_multiply_in_bfloat16_and_learn_in_float32():
    torch.manual_seed(0)
    net, rows = nn.Sequential(nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 8, bias=False)), torch.randn(16, 64)

    def rounded(values):
        return values.detach().bfloat16().double()

    wanted = torch.nn.functional.silu(rounded(rows) @ rounded(net[0].weight).T + rounded(net[0].bias))
    wanted = rounded(wanted.float()) @ rounded(net[2].weight).T
    with linears_in_bfloat16(net):
        made = net(rows)
        made.square().mean().backward()
    assert made.dtype == net[0].weight.grad.dtype == torch.float32
    torch.testing.assert_close(made.double(), wanted, rtol=2e-2, atol=1e-2)
    assert (made - net(rows)).abs().max() > 1e-4  # rounded inside the context, and only there
    assert torch.equal(net(rows), nn.functional.linear(net[:2](rows), net[2].weight))
