"""V, learnt beside the policy."""

from __future__ import annotations

import torch

from genalign.method.value import Value


def test_a_resumed_value_goes_on_as_if_it_had_never_stopped():
    torch.manual_seed(1)
    x, rewards = torch.randn(40, 7), torch.randn(40)
    one, other = Value(0.01), Value(0.01)
    for value in (one, other):
        value.count(rewards)
        value.learn(x, rewards, 5)
    resumed = Value(0.01)
    resumed.load_state_dict({name: tensor.clone() for name, tensor in other.state_dict().items()})
    for value in (one, resumed):
        value.count(rewards)
        value.learn(x, rewards, 5)
    assert torch.equal(one(x), resumed(x))
    fresh = Value(0.01)
    fresh.load_state_dict(Value(0.01).state_dict())  # before it ever learnt
    assert not fresh(x).any()
