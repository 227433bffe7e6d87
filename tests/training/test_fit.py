"""Builders of shipped models resume where they were killed."""

import pytest
import torch
from torch import nn

from genalign.training.fit import fit


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
