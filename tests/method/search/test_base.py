"""What all searches at inference share, on a toy sampler: equal budgets counted by hand, rows apart, plain failures."""

from __future__ import annotations

import pytest
import torch

from genalign.method.search.base import Searched, find_in_batches
from genalign.types import GenalignError, UsageError
from tests.helpers.searches import PROMPTS, SEEDS, search, total_of
from tests.helpers.toy_policy import ToyPolicy, ToyReward
from tests.helpers.toy_sampler import PixelReward, ToySampler, redness

SEARCHES = ("best-of-n", "random", "reno", "fk")


# ---- what all searches share ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHES)
def test_the_first_candidate_is_plain_sampling(name):
    policy, reward = ToySampler(steps=2), PixelReward(redness)
    found = search(name, budget=1).find(policy, PROMPTS, SEEDS, reward)
    plain = policy.generate(PROMPTS, SEEDS)["image"].data
    if name != "fk":  # which walks one population at least
        torch.testing.assert_close(found.media["image"].data, plain, rtol=0, atol=1e-12)
        assert found.seeds == tuple(SEEDS)
    assert (found.total >= redness(plain) - 1e-6).all()


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("group", [1, 4])
def test_no_search_exceeds_its_budget_and_none_wastes_much_of_it(name, group):
    policy, reward = ToySampler(steps=4), PixelReward(redness, differentiable=name == "reno")
    before = policy.calls()
    found = search(name, budget=40, group=group).find(policy, PROMPTS, SEEDS, reward)
    evaluation = 4 + 2  # denoiser calls, a decoding, a scoring
    watched = 4 if name == "fk" else 0  # one row is watched for its levels
    assert found.spent.units <= 40 * evaluation * 3 + watched
    assert found.spent.units >= 24 * evaluation * 3
    by_hand = policy.calls() - before + 2 * reward.asked  # every scored sample was decoded
    assert found.spent.forward == by_hand


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_returns_better_samples_and_says_how_good_they_are(name):
    policy, reward = ToySampler(steps=2), PixelReward(redness)
    found = search(name, budget=60).find(policy, PROMPTS, SEEDS, reward)
    assert found.readable.all()
    torch.testing.assert_close(found.total.double(), redness(found.media["image"].data), rtol=1e-6, atol=1e-6)
    assert (found.total > total_of(policy, SEEDS)).all()
    assert not found.media["image"].data.requires_grad
    assert policy.delta.grad is None


@pytest.mark.parametrize("name", SEARCHES)
def test_rows_do_not_know_their_neighbours(name):
    policy, reward = ToySampler(steps=3), PixelReward(redness)
    together = search(name, budget=30).find(policy, PROMPTS, SEEDS, reward)
    alone = find_in_batches(search(name, budget=30), policy, PROMPTS, SEEDS, reward, batch=1)
    torch.testing.assert_close(alone.media["image"].data, together.media["image"].data, rtol=1e-6, atol=1e-6)
    assert alone.seeds == together.seeds


@pytest.mark.parametrize("name", SEARCHES)
def test_rows_that_cannot_be_scored_stay_plain(name):
    policy, reward = ToySampler(steps=3), PixelReward(redness, mute=[1])
    found = search(name, budget=20).find(policy, PROMPTS, SEEDS, reward)
    assert found.readable.tolist() == [True, False, True]
    plain = policy.generate(PROMPTS, SEEDS)["image"].data
    torch.testing.assert_close(found.media["image"].data[1], plain[1], rtol=0, atol=1e-12)
    assert found.seeds[1] == SEEDS[1]


def test_a_searched_policy_draws_plainly_as_its_reference():
    policy = ToySampler(steps=2)
    both = Searched(policy, search("best-of-n", budget=8), PixelReward(redness), batch=4)
    plain = policy.generate(PROMPTS, SEEDS)["image"].data
    with both.weights("reference"):
        assert torch.equal(both.generate(PROMPTS, SEEDS)["image"].data, plain)
    with both.weights("policy"):
        assert (redness(both.generate(PROMPTS, SEEDS)["image"].data) > redness(plain)).any()


# ---- refused --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_searched_is_told():
    for name in SEARCHES:
        with pytest.raises(UsageError, match=f"{name} needs a reward"):
            search(name).find(ToySampler(), PROMPTS, SEEDS, None)
        with pytest.raises(UsageError, match="trains nothing; run it by genalign sample"):
            search(name).collect(ToySampler(), PROMPTS, PixelReward(redness), 0, 0)
    assert search("best-of-n", budget=3).find(ToyPolicy(), PROMPTS, SEEDS, ToyReward()).readable.all()
    for name in SEARCHES[1:]:
        with pytest.raises(UsageError, match="which ToyPolicy cannot; take --search best-of-n"):
            search(name).find(ToyPolicy(), PROMPTS, SEEDS, ToyReward())
    with pytest.raises(GenalignError, match="'pixels' gives no gradient"):
        search("reno").find(ToySampler(), PROMPTS, SEEDS, PixelReward(redness, differentiable=False))
    assert search("reno").needs == {"reward", "reward_grad"}
    assert search("fk").needs == {"reward"}
