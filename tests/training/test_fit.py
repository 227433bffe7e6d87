"""Builders of shipped models resume where they were killed."""

import pytest
import torch
from torch import nn

from genalign.training.fit import fit
from genalign.training.muon import Muon


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_builders_resume_where_they_were_killed(tmp_path, muon):
    class KilledError(Exception):
        pass

    def train(state, die_at=None):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv1d(4, 5, 2), nn.Flatten(), nn.Linear(10, 4))

        def loss_of(step):
            if step == die_at:
                raise KilledError
            return net(torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(step))).square().mean()

        fit(net, loss_of, steps=10, learning_rate=0.1, state=state, save_every=5, muon=muon)
        return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])

    whole = train(tmp_path / "whole.safetensors")
    with pytest.raises(KilledError):
        train(tmp_path / "killed.safetensors", die_at=7)
    assert torch.equal(whole, train(tmp_path / "killed.safetensors"))


def test_kernels_are_stepped_by_muon_as_matrices_of_their_outputs(tmp_path):
    """One step, against Muon on the kernel as a matrix; the bias is AdamW's."""
    torch.manual_seed(0)
    net, rows = nn.Conv1d(8, 6, 3), torch.randn(4, 8, 5)
    kernel = nn.Parameter(net.weight.detach().reshape(6, 24).clone())
    bias = nn.Parameter(net.bias.detach().clone())
    loss = nn.functional.conv1d(rows, kernel.view(6, 8, 3), bias).square().mean()
    loss.backward()
    nn.utils.clip_grad_norm_([kernel, bias], 1.0)
    Muon([kernel], lr=0.5 / 100, weight_decay=0.01).step()  # the first of 100 steps of warm-up
    torch.optim.AdamW([bias], lr=0.1 / 100, betas=(0.9, 0.98), weight_decay=0.01).step()
    fit(
        net,
        lambda step: net(rows).square().mean(),
        steps=1,
        learning_rate=0.1,
        muon=0.5,
        state=tmp_path / "state.safetensors",
        ema_decay=0.0,
    )
    torch.testing.assert_close(net.weight.flatten(1), kernel, rtol=0, atol=1e-6)
    torch.testing.assert_close(net.bias, bias, rtol=0, atol=1e-6)
