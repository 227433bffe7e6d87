"""ReNO: the norm of the noise in closed form, the ascent written out."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from genalign.method.search.base import candidate_seed
from genalign.method.search.reno import norm_penalty
from genalign.types import Prompt
from tests.helpers.searches import PROMPTS, SEEDS, search
from tests.helpers.toy_sampler import DIMS, PixelReward, ToySampler, redness


def test_the_penalty_is_minus_the_log_density_of_the_norm():
    """Against scipy's chi distribution, up to one constant."""
    lengths = torch.tensor([0.5, 2.0, 5.0, math.sqrt(47), 9.0], dtype=torch.float64)
    noise = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * lengths.view(-1, 1, 1, 1)
    expected = torch.from_numpy(-stats.chi(48).logpdf(lengths.numpy()))
    apart = norm_penalty(noise) - expected
    torch.testing.assert_close(apart, apart[:1].expand(5), rtol=1e-9, atol=1e-9)
    leaf = noise.clone().requires_grad_()
    norm_penalty(leaf).sum().backward()
    outward = (leaf.grad * noise).flatten(1).sum(1)
    assert outward[3].abs() < 1e-9  # sqrt(D - 1) is the mode
    assert (outward[:3] < 0).all()
    assert outward[4] > 0


def test_without_reward_the_norm_goes_to_its_mode_and_the_direction_stays():
    policy = ToySampler(steps=1)
    method = search("reno", budget=600, learning_rate=0.2, max_grad_norm=10.0, regularisation=0.5, momentum=0.5)
    seen = []
    plain = policy.generate_with_grad

    def spy(prompts, seeds=None, *, noise=None, **keys):
        seen.append(noise.detach().clone())
        return plain(prompts, seeds, noise=noise, **keys)

    policy.generate_with_grad = spy  # type: ignore[method-assign]
    method.find(policy, PROMPTS, SEEDS, PixelReward(lambda pixels: 0 * pixels.mean((1, 2, 3))))
    first, last = seen[0].flatten(1), seen[-1].flatten(1)
    torch.testing.assert_close(last.norm(dim=1), torch.full((3,), math.sqrt(DIMS - 1)).double(), rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.cosine_similarity(first, last), torch.ones(3).double())


def test_reno_is_sgd_on_the_noise_written_out():
    """Nesterov's momentum and the clip per candidate, in a float64 loop with a gradient of its own."""
    policy, clip, rate, mu, share = ToySampler(steps=1), 0.1, 0.7, 0.9, 0.05
    keys = {"learning_rate": rate, "momentum": mu, "max_grad_norm": clip, "regularisation": share}
    found = search("reno", budget=1 + 3 * 6, **keys).find(policy, PROMPTS, SEEDS, PixelReward(redness))
    best = torch.full((3,), -math.inf, dtype=torch.float64)
    for row in range(3):
        prompt, x = [PROMPTS[row]], policy.initial_noise([PROMPTS[row]], [SEEDS[row]])
        velocity = torch.zeros_like(x)
        for _ in range(7):
            x = x.detach().requires_grad_()
            clean = x - policy.denoise(prompt, x, 1.0)
            value = redness((clean.flatten(1) @ policy.pixels).sigmoid().reshape(-1, 3, 2, 2)).sum()
            best[row] = max(best[row], value.detach())
            length = x.norm()
            (slope,) = torch.autograd.grad(-value + share * (length**2 / 2 - (DIMS - 1) * length.log()), x)
            slope = slope * min(1.0, clip / float(slope.norm()))
            velocity = mu * velocity + slope
            x = x - rate * (slope + mu * velocity)
    torch.testing.assert_close(found.total.double(), best, rtol=1e-6, atol=1e-6)


def test_reno_counts_its_iterations_and_keeps_the_best_one():
    policy, reward = ToySampler(steps=1), PixelReward(redness)
    found = search("reno", budget=148).find(policy, PROMPTS, SEEDS, reward)
    assert reward.asked == 50 * 3
    assert (found.spent.forward, found.spent.backward) == (50 * 3 * 3, 49 * 3 * 3)
    worst = PixelReward(lambda pixels: -pixels.sum((1, 2, 3)).detach() + 0 * pixels.sum((1, 2, 3)))
    assert (search("reno", budget=40).find(policy, PROMPTS, SEEDS, worst).seeds) == tuple(SEEDS)


def test_recomputed_calls_are_paid_for():
    policy, reward = ToySampler(steps=3), PixelReward(redness)
    found = search("reno", budget=50, checkpoint=True).find(policy, PROMPTS, SEEDS, reward)
    rounds = reward.asked // 3
    assert found.spent.forward == 3 * (rounds * (3 + 2) + (rounds - 1) * 3)
    assert found.spent.units <= 50 * 5 * 3


def test_noises_of_one_prompt_are_searched_as_one_batch_and_the_best_is_kept():
    policy = ToySampler(steps=1)
    several = search("reno", budget=80, group=4).find(policy, PROMPTS, SEEDS, PixelReward(redness))
    rounds = 1 + (80 - 4) // 12
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        seeds = [candidate_seed(seed, prompt, k) for k in range(4)]
        one = search("reno", budget=1 + 3 * (rounds - 1)).find(policy, [prompt] * 4, seeds, PixelReward(redness))
        assert float(several.total[row]) == pytest.approx(float(one.total.max()), rel=1e-6)
        assert several.seeds[row] == seeds[int(one.total.argmax())]


def test_a_reward_whose_gradient_is_not_finite_moves_nothing_but_its_own_row():
    policy = ToySampler(steps=1)

    def broken(pixels: Tensor) -> Tensor:
        value = redness(pixels)
        spike = (value[1:2] - value[1:2].detach()).abs().sqrt()  # the root's slope at 0 is infinite
        return torch.cat([value[:1], value[1:2] + spike, value[2:]])

    found = search("reno", budget=30).find(policy, PROMPTS, SEEDS, PixelReward(broken))
    clean = search("reno", budget=30).find(policy, PROMPTS, SEEDS, PixelReward(redness))
    assert torch.isfinite(found.media["image"].data).all()
    torch.testing.assert_close(found.total[[0, 2]], clean.total[[0, 2]])


def test_reno_beats_the_baselines_at_equal_compute():
    policy, prompts = ToySampler(steps=1), [Prompt(str(uid), uid=uid) for uid in range(24)]
    totals = {}
    for name in ("best-of-n", "random", "reno"):
        found = search(name, budget=61).find(policy, prompts, range(24), PixelReward(redness))
        totals[name] = found.total
    assert totals["reno"].mean() > totals["best-of-n"].mean() + 0.01
    assert totals["random"].mean() > totals["best-of-n"].mean()
