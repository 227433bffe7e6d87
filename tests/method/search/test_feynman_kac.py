"""Feynman-Kac steering: resampling, weights, and the walk tilted by the reward."""

from __future__ import annotations

import pytest
import torch

from genalign.method.search.feynman_kac import log_weights, systematic
from genalign.types import Prompt
from tests.helpers.searches import PROMPTS, SEEDS, search
from tests.helpers.toy_sampler import PixelReward, ToySampler, redness


def test_systematic_resampling_draws_each_particle_as_often_as_its_weight_says():
    weights = torch.tensor([0.5, 0.0, 0.3, 0.2])
    for lot in (0.0, 0.31, 0.77, 0.999):
        times = torch.bincount(systematic(weights, lot), minlength=4)
        expected = 4 * weights
        assert ((times == expected.floor()) | (times == expected.ceil())).all()
    many = torch.stack([torch.bincount(systematic(weights, (k + 0.5) / 1000), minlength=4) for k in range(1000)])
    torch.testing.assert_close(many.float().mean(0), 4 * weights, atol=2e-3, rtol=0)
    assert torch.equal(systematic(torch.full((5,), 0.2), 0.4), torch.arange(5))


def test_a_particle_that_cannot_be_scored_has_the_mean_weight_of_the_others():
    rise, readable = torch.tensor([1.0, 9.0, 3.0, 0.0]), torch.tensor([True, False, True, True])
    found = log_weights(rise, readable).exp()
    assert float(found[1]) == pytest.approx(float(rise[readable].exp().mean()), rel=1e-6)
    assert torch.equal(log_weights(rise, torch.zeros(4, dtype=torch.bool)), torch.zeros(4))


def test_steering_without_noise_or_selection_is_plain_sampling():
    policy, reward = ToySampler(steps=6), PixelReward(redness)
    found = search("fk", group=1, budget=1, noise=0.0, strength=0.0).find(policy, PROMPTS, SEEDS, reward)
    torch.testing.assert_close(found.media["image"].data, policy.generate(PROMPTS, SEEDS)["image"].data)


def test_stochastic_steps_keep_the_coefficients_of_the_path():
    """Without selection, where x0_hat is told exactly (data in one point), the walk ends in that point's cloud."""

    class Point(ToySampler):
        def denoise(self, prompts, x, sigma):
            self.made += len(prompts)
            return (x - 0.7) / sigma  # the velocity of the flow to the point 0.7

    policy, seen = Point(steps=8), []
    real = policy.generate_with_grad

    def spy(prompts, seeds=None, *, guide=None, **keys):
        def look(i, x, out, x0):
            seen.append((i, x, x0))
            return out if guide is None else guide(i, x, out, x0)

        return real(prompts, seeds, guide=look, **keys)

    policy.generate_with_grad = spy  # type: ignore[method-assign]
    many = [Prompt("", uid=uid) for uid in range(64)]
    flat = PixelReward(lambda pixels: 0 * pixels.mean((1, 2, 3)))
    search("fk", group=8, budget=1, strength=0.0, noise=0.6).find(policy, many, range(64), flat)
    for i, x, x0 in seen[-8:]:
        sigma = policy.grid[i]
        torch.testing.assert_close(x0, torch.full_like(x0, 0.7), rtol=0, atol=1e-9)
        eps = (x - (1 - sigma) * 0.7) / sigma  # (512, *L) standard normal
        assert float(eps.mean()) == pytest.approx(0, abs=4 / 4096**0.5)
        assert float(eps.var()) == pytest.approx(1, abs=4 * (2 / 4096) ** 0.5)


def test_selection_tilts_the_walk_by_the_reward():
    """Particles of a stronger population end with higher rewards on average, not only at their best."""

    def ends(strength: float) -> float:
        policy, seen = ToySampler(steps=8), []
        reward = PixelReward(lambda pixels: (seen.append(redness(pixels).detach()), redness(pixels))[1])
        prompts = [Prompt(str(uid), uid=uid) for uid in range(32)]
        search("fk", group=8, budget=1, strength=strength).find(policy, prompts, range(32), reward)
        return float(seen[-1].mean())

    weak, strong = ends(0.0), ends(30.0)
    assert strong > weak + 0.03


def test_siblings_alone_compete():
    policy, prompts = ToySampler(steps=4), [Prompt("a", uid=0), Prompt("b", uid=1)]
    alone = search("fk", group=4, budget=1, strength=40.0).find(policy, prompts[:1], [3], PixelReward(redness))
    richer = PixelReward(lambda pixels: redness(pixels) + torch.arange(len(pixels)).div(4, rounding_mode="floor"))
    both = search("fk", group=4, budget=1, strength=40.0).find(policy, prompts, [3, 5], richer)
    torch.testing.assert_close(both.media["image"].data[0], alone.media["image"].data[0])
