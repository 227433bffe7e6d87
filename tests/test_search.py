"""Searches at inference on a toy sampler: equal budgets counted by hand, and closed forms where there are any."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from genalign.method import MethodSettings, build_method
from genalign.method.search.base import Searched, Searching, candidate_seed, find_in_batches
from genalign.method.search.feynman_kac import log_weights, systematic
from genalign.method.search.levels import Reader, watch
from genalign.method.search.reno import norm_penalty
from genalign.types import GenalignError, Method, Prompt, UsageError
from tests.toy_policy import ToyPolicy, ToyReward
from tests.toy_sampler import DIMS, PixelReward, ToySampler, redness

PROMPTS = [Prompt(f"scene {i}", uid=i) for i in range(3)]
SEEDS = [4, 4, 9]
SEARCHES = ("best-of-n", "random", "reno", "fk")


def search(name: str, **keys: object) -> Searching:
    method = build_method(MethodSettings(name=name, **keys))
    assert isinstance(method, Searching)
    assert isinstance(method, Method)
    return method


def total_of(policy: ToySampler, seeds: list[int], prompts: list[Prompt] = PROMPTS) -> Tensor:
    return redness(policy.generate(prompts, seeds)["image"].data)


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


def test_a_searched_policy_draws_plainly_as_its_reference():
    policy = ToySampler(steps=2)
    both = Searched(policy, search("best-of-n", budget=8), PixelReward(redness), batch=4)
    plain = policy.generate(PROMPTS, SEEDS)["image"].data
    with both.weights("reference"):
        assert torch.equal(both.generate(PROMPTS, SEEDS)["image"].data, plain)
    with both.weights("policy"):
        assert (redness(both.generate(PROMPTS, SEEDS)["image"].data) > redness(plain)).any()


# ---- ReNO -----------------------------------------------------------------------------------------------------------


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


# ---- steering -------------------------------------------------------------------------------------------------------


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
