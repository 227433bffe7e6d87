"""Best-of-N and random search of the noise."""

from __future__ import annotations

import math

import pytest

from genalign.method.search.base import candidate_seed
from tests.helpers.searches import PROMPTS, SEEDS, search, total_of
from tests.helpers.toy_sampler import PixelReward, ToySampler, redness


def test_best_of_n_is_the_best_of_n():
    policy, reward = ToySampler(steps=2), PixelReward(redness, differentiable=False)
    found = search("best-of-n", budget=17, group=5).find(policy, PROMPTS, SEEDS, reward)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        seeds = [candidate_seed(seed, prompt, k) for k in range(17)]
        totals = total_of(policy, seeds, [prompt] * 17)
        assert float(found.total[row]) == pytest.approx(float(totals.max()), rel=1e-6)
        assert found.seeds[row] == seeds[int(totals.argmax())]
    assert reward.asked == 17 * 3


def test_random_search_proposes_standard_normal_noise_near_the_best():
    policy, reward = ToySampler(steps=2), PixelReward(redness)
    found = search("random", budget=9, group=1, radius=0.5).find(policy, PROMPTS[:1], SEEDS[:1], reward)
    best = policy.initial_noise(PROMPTS[:1], SEEDS[:1])
    value = float(total_of(policy, SEEDS[:1], PROMPTS[:1]))
    for k in range(1, 9):
        fresh = policy.initial_noise(PROMPTS[:1], [candidate_seed(SEEDS[0], PROMPTS[0], k)])
        tried = math.sqrt(0.75) * best + 0.5 * fresh
        new = float(redness(policy.generate_with_grad(PROMPTS[:1], noise=tried)["image"].data.detach()))
        best, value = (tried, new) if new > value else (best, value)
    assert float(found.total) == pytest.approx(value, rel=1e-6)
