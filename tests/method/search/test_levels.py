"""Noise levels read off plain sampling, against the transition kernel."""

from __future__ import annotations

import pytest
import torch

from genalign.method.search.levels import Reader, watch
from genalign.types import UsageError
from tests.helpers.searches import PROMPTS, SEEDS, search
from tests.helpers.toy_sampler import PixelReward, ToySampler, redness


def test_levels_are_read_off_plain_sampling():
    policy = ToySampler(sigmas=[1.0, 0.8, 0.3, 0.05, 0.0])
    levels = watch(policy, PROMPTS[0])
    for level, sigma in zip(levels, policy.grid, strict=False):
        assert (level.a, level.s, level.p, level.q) == pytest.approx((1 - sigma, sigma, 1.0, sigma), abs=1e-9)
    assert policy.calls() == 4


@pytest.mark.parametrize("kind", ["velocity", "epsilon", "v_prediction"])
def test_levels_are_those_of_the_transition_kernel(kind):
    """(p, q) as the endpoints of genalign.policy.transition have them, whatever the model predicts."""
    from genalign.policy.transition import flow_path, preserving_path, step_table

    if kind == "velocity":
        path = flow_path([0.999, 0.6, 0.1, 0.0])
    else:
        path = preserving_path([0.01, 0.4, 0.99], [0.4, 0.99, 1.0], predicts=kind)
    table = step_table(path, "ode", 0.0)
    x, out = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    read = Reader()
    for i, level in enumerate([read(x, out, table.endpoints(i, x, out)[0]) for i in range(3)]):
        assert (level.a, level.s) == pytest.approx((float(path.a[i]), float(path.s[i])), rel=1e-9)
        x0, eps = table.endpoints(i, x, out)
        torch.testing.assert_close(level.eps(x, x0), eps)
        torch.testing.assert_close(level.out(x, x0), out)


def test_a_sampler_that_clips_is_refused():
    policy = ToySampler()
    real = policy.generate_with_grad

    def clipped(prompts, seeds=None, *, guide=None, **keys):
        bent = None if guide is None else lambda i, x, out, x0: guide(i, x, out, x0.clamp(-0.1, 0.1))
        return real(prompts, seeds, guide=bent, **keys)

    policy.generate_with_grad = clipped  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="clips or thresholds"):
        search("fk").find(policy, PROMPTS, SEEDS, PixelReward(redness))


def test_an_output_of_zeros_tells_no_level():
    x = torch.ones(1, 3, 4)
    with pytest.raises(UsageError, match="output is 0 everywhere, as of weights that nobody trained"):
        Reader()(x, torch.zeros_like(x), x)
