"""Guidance by a reward of latents, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from genalign.method import MethodSettings, build_method
from genalign.method.search.nrg import Guidance, RewardGuide, objective_weights
from genalign.types import Prompt, UsageError
from tests.helpers.toy_sampler import DIMS, LATENT, PixelReward, ToySampler, redness

PROMPTS = [Prompt(f"scene {i}", uid=i) for i in range(3)]
SEEDS = [4, 4, 9]


class Slope:
    """r_k(x) = b_k . x / (a + s): linear in the latents at every level."""

    aspects = ("up", "down")
    weights = (1.0, 0.0)

    def __init__(self) -> None:
        self.b = torch.randn(2, DIMS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        self.asked: list[tuple[float, float]] = []

    def __call__(self, prompts, x: Tensor, a: float, s: float) -> Tensor:
        self.asked.append((a, s))
        return x.flatten(1) @ self.b.to(x).T / (a + s)


class Normal(ToySampler):
    """The exact velocity of the flow from N(0, I) to N(m, 1/4 I), m = 0.3 everywhere."""

    mean, var = 0.3, 0.25

    def denoise(self, prompts, x, sigma):
        self.made += len(prompts)
        a, s = 1 - sigma, sigma
        score = -(x - a * self.mean) / (a * a * self.var + s * s)
        eps = -s * score
        return (eps * 1.0 - (x - s * eps) / a) if a > 0 else eps - self.mean  # v = eps_hat - x0_hat


def guided(policy: ToySampler, latent, **keys) -> Tensor:
    method = build_method(MethodSettings(name="nrg", **keys))
    assert isinstance(method, Guidance)
    method.latent = lambda: latent
    return method.find(policy, PROMPTS, SEEDS, PixelReward(redness)).media["image"].data


def test_no_strength_is_plain_sampling_bit_for_bit():
    policy = ToySampler()
    assert torch.equal(guided(policy, Slope(), strength=0.0), policy.generate(PROMPTS, SEEDS)["image"].data)


def test_the_guided_velocity_is_the_papers():
    """v - w t/(1-t) grad r at every step, with the cap where that has no bound."""
    policy, slope = ToySampler(steps=5), Slope()
    settings = MethodSettings(name="nrg", strength=0.7, cap=2.0, weights={"up": 0.5, "down": -2.0})
    weights = objective_weights(slope, settings.weights)
    guide = RewardGuide(slope, weights, PROMPTS, settings)
    x = policy.initial_noise(PROMPTS, SEEDS)
    rise = (0.5 * slope.b[0] - 2.0 * slope.b[1]).reshape(LATENT)
    for step, t in enumerate(policy.grid[:-1]):
        out = policy.denoise(PROMPTS, x, t).detach()
        ratio = min(t / (1 - t), 2.0) if t < 1 else 2.0
        torch.testing.assert_close(guide(step, x, out, x - t * out), out - 0.7 * ratio * rise.expand_as(out))
    assert slope.asked == [pytest.approx((1 - t, t)) for t in policy.grid[:-1]]
    assert guide.steps == 5


def test_guidance_costs_no_denoiser_call_beyond_sampling():
    policy, slope = ToySampler(steps=5), Slope()
    guided(policy, slope)
    assert policy.calls() == 5 * len(PROMPTS)
    assert len(slope.asked) == 5


def test_an_exact_reward_shifts_a_gaussian_by_what_bayes_says():
    """p(x) exp(w b.x) of N(m, c I) is N(m + w c b, c I). The noise-aware reward is log E[exp(w b.x0) | x_t] / w."""
    grid = [0.998 * (1 - i / 400) for i in range(401)]
    policy, strength = Normal(sigmas=grid), 0.8
    b = torch.linspace(-0.5, 0.5, DIMS, dtype=torch.float64)

    class Exact:
        aspects, weights = ("r",), (1.0,)

        def __call__(self, prompts, x, a, s):
            gain = a * Normal.var / (a * a * Normal.var + s * s)  # E[x0|x] = m + gain (x - a m); var is free of x
            return (gain * (x.flatten(1) - a * Normal.mean)) @ b[:, None].to(x)

    prompts = [Prompt("", uid=uid) for uid in range(600)]
    method = build_method(MethodSettings(name="nrg", strength=strength, cap=1e9))
    method.latent = lambda: Exact()  # type: ignore[attr-defined]
    ends: list[Tensor] = []
    policy.decode = lambda clean: ends.append(clean) or ToySampler.decode(policy, clean)  # type: ignore[method-assign]
    method.find(policy, prompts, range(600), PixelReward(redness))  # type: ignore[attr-defined]
    mean = ends[-1].flatten(1).mean(0)
    expected = Normal.mean + strength * Normal.var * b
    assert (mean - expected).abs().max() < 4 * math.sqrt(Normal.var / 600) + 0.01
    assert float((mean - Normal.mean) @ b / (b @ b)) == pytest.approx(strength * Normal.var, abs=0.05)


def test_objectives_are_linear_in_their_weights_and_known_by_name():
    slope = Slope()
    assert objective_weights(slope, None).tolist() == [1.0, 0.0]
    assert objective_weights(slope, {"down": 2.0}).tolist() == [0.0, 2.0]
    with pytest.raises(UsageError, match="names 'left', but the fitted reward's objectives are up, down"):
        objective_weights(slope, {"left": 1.0})
    with pytest.raises(UsageError, match="no fitted reward; make one by genalign fit-reward"):
        build_method(MethodSettings(name="nrg")).find(ToySampler(), PROMPTS, SEEDS, PixelReward(redness))  # type: ignore[attr-defined]
