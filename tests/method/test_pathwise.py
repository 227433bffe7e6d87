"""AlignProp, DRaFT and ReFL against gradients of an unrolled loop, on a sampler small enough to write one out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from genalign.method import MethodSettings, build_method
from genalign.types import Differentiable, GenalignError, Method, Prompt, UsageError, sample_seed
from tests.helpers.toy_policy import ToyPolicy
from tests.helpers.toy_sampler import LATENT, PixelReward, ToySampler, redness

PROMPTS = [Prompt(f"scene {i}", uid=i) for i in range(5)]
SEED, STEP = 11, 3


def method(name: str, **keys: object) -> Method:
    return build_method(MethodSettings(name=name, **keys))


def backward(learner: Method, policy: ToySampler, reward: PixelReward, step: int = STEP):
    policy.delta.grad = None
    experience = learner.collect(policy, PROMPTS, reward, SEED, step)
    losses = []
    for loss in learner.losses(policy, experience):
        loss.total.backward()
        losses.append(loss)
    return policy.delta.grad, losses, experience


def unrolled(policy: ToySampler, rows: list[Prompt], x: Tensor, grad_from: int) -> tuple[Tensor, list[Tensor]]:
    """Euler steps written out; x is detached where the graph starts. Returns x at the end, and x0_hat of each step."""
    hats = []
    for i, (now, then) in enumerate(pairwise(policy.grid)):
        if i == grad_from:
            x = x.detach()
        out = policy.denoise(rows, x, now)
        hats.append(x - now * out)
        x = x + (then - now) * out
    return x, hats


def gradient(policy: ToySampler, value: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, policy.delta)
    return found


def pixels_of(policy: ToySampler, latents: Tensor) -> Tensor:
    return (latents.flatten(1) @ policy.pixels).sigmoid().reshape(-1, 3, 2, 2)


@pytest.mark.parametrize(("grad_steps", "grad_from"), [(1, 4), (3, 2), (None, 0)])
@pytest.mark.parametrize("micro_batch", [2, 5])
def test_the_gradient_is_that_of_the_unrolled_loop(grad_steps, grad_from, micro_batch):
    policy, reward = ToySampler(steps=5), PixelReward(redness)
    learner = method("draft", micro_batch=micro_batch, grad_steps=grad_steps)
    found, losses, experience = backward(learner, policy, reward)
    x = policy.initial_noise(PROMPTS, experience.trajectory.seeds)
    end, _ = unrolled(policy, PROMPTS, x, grad_from)
    torch.testing.assert_close(found, gradient(policy, -redness(pixels_of(policy, end)).mean()), rtol=1e-9, atol=1e-12)
    assert found.abs().max() > 1e-4
    assert [loss.step for loss in losses] == [False] * (len(losses) - 1) + [True]
    rewards = sum(loss.log["reward"][0] for loss in losses), sum(loss.log["reward"][1] for loss in losses)
    assert rewards[1] == 5
    assert rewards[0] / 5 == pytest.approx(float(redness(pixels_of(policy, end)).detach().mean()), rel=1e-6)


def test_whole_graph_gradient_is_that_of_finite_differences():
    policy, reward = ToySampler(steps=4), PixelReward(redness)
    found, _, experience = backward(method("draft", grad_steps=None), policy, reward)

    def value() -> float:
        media = policy.generate(PROMPTS, experience.trajectory.seeds)
        return float(redness(media["image"].data).mean())

    for d in (0, 5):
        with torch.no_grad():
            policy.delta[d] += 1e-5
            up = value()
            policy.delta[d] -= 2e-5
            down = value()
            policy.delta[d] += 1e-5
        assert float(found[d]) == pytest.approx(-(up - down) / 2e-5, rel=1e-5)


def test_draft_lv_averages_in_retaken_last_steps():
    policy, reward = ToySampler(steps=5), PixelReward(redness)
    found, losses, experience = backward(method("draft-lv", micro_batch=3), policy, reward)
    seeds = experience.trajectory.seeds
    end, _ = unrolled(policy, PROMPTS, policy.initial_noise(PROMPTS, seeds), 4)
    total, sigma = redness(pixels_of(policy, end)), policy.grid[-2]
    for copy in (1, 2):
        fresh = [sample_seed(seed, prompt.uid, copy) for seed, prompt in zip(seeds, PROMPTS, strict=True)]
        x = (1 - sigma) * end.detach() + sigma * policy.initial_noise(PROMPTS, fresh)
        total = total + redness(pixels_of(policy, x - sigma * policy.denoise(PROMPTS, x, sigma)))
    torch.testing.assert_close(found, gradient(policy, -total.mean() / 3), rtol=1e-9, atol=1e-12)
    assert sum(loss.log["reward"][1] for loss in losses if loss.log) == 5  # copies are not samples
    assert reward.asked == 15


def test_draft_lv_has_less_variance():
    """Over many draws, and with the same expectation up to its own error."""

    def draws(name: str) -> Tensor:
        policy = ToySampler(sigmas=[1.0, 0.6, 0.0])
        return torch.stack([backward(method(name), policy, PixelReward(redness), step)[0] for step in range(60)])

    plain, lv = draws("draft"), draws("draft-lv")
    assert lv.var(0).mean() < plain.var(0).mean()


def test_refl_looks_at_a_late_x0_hat_and_stops_there():
    policy, reward = ToySampler(steps=6), PixelReward(redness)
    learner = method("refl", grad_steps=3, micro_batch=5)
    looked = set()
    for step in range(12):
        before = policy.calls()
        found, losses, experience = backward(learner, policy, reward, step)
        (late,) = {round(loss.log["grad_steps"][0]) for loss in losses}
        at = 6 - late
        assert policy.calls() - before == 5 * (at + 1)  # nothing is sampled beyond the step that is scored
        x = policy.initial_noise(PROMPTS, experience.trajectory.seeds)
        _, hats = unrolled(policy, PROMPTS, x, at)
        expected = gradient(policy, -redness(pixels_of(policy, hats[at])).mean())
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        looked.add(late)
    assert looked == {1, 2, 3}


def test_alignprop_draws_its_truncation_once_a_step():
    policy, reward = ToySampler(steps=8), PixelReward(redness)
    learner, drawn = method("alignprop", grad_steps=4, spread=2.0, micro_batch=2), []
    for step in range(200):
        drawn.append(learner.collect(policy, PROMPTS, reward, SEED, step).grad_steps)
    assert set(drawn) <= set(range(1, 8))
    assert len(set(drawn)) == 7
    assert sum(drawn) / 200 == pytest.approx(4, abs=4 * 1.7 / 200**0.5)
    again = learner.collect(policy, PROMPTS[:2], reward, SEED, 17)
    assert again.grad_steps == drawn[17]  # whatever share of the prompts a rank has
    found, losses, experience = backward(learner, policy, reward, 17)
    x = policy.initial_noise(PROMPTS, experience.trajectory.seeds)
    end, _ = unrolled(policy, PROMPTS, x, 8 - drawn[17])
    torch.testing.assert_close(found, gradient(policy, -redness(pixels_of(policy, end)).mean()), rtol=1e-9, atol=1e-12)
    assert {loss.log["grad_steps"] for loss in losses} == {(float(drawn[17]), 1.0)}


def saved_bytes(steps: int, grad_steps: int) -> int:
    """Exactly what autograd keeps for the backward pass of one micro-batch."""
    policy, kept = ToySampler(steps=steps), 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    learner = method("draft", grad_steps=grad_steps)
    experience = learner.collect(policy, PROMPTS, PixelReward(redness), SEED, STEP)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for loss in learner.losses(policy, experience):
            loss.total.backward()
    return kept


def test_memory_does_not_depend_on_the_steps_before_the_graph():
    assert saved_bytes(4, 2) == saved_bytes(12, 2) > 0
    assert saved_bytes(4, 1) < saved_bytes(4, 3)


def test_the_steps_before_the_graph_run_once_and_the_others_are_computed_again():
    for grad_steps, recomputed in ((1, 0), (3, 3)):
        policy = ToySampler(steps=7)
        backward(method("draft", grad_steps=grad_steps), policy, PixelReward(redness))
        assert policy.calls() == 5 * (7 + recomputed)


def test_rewards_see_pixels_between_0_and_1():
    reward = PixelReward(redness)
    backward(method("draft"), ToySampler(), reward)
    assert 0 <= reward.range[0] < 0.5 < reward.range[1] <= 1


def test_a_row_that_cannot_be_read_pulls_nowhere_and_still_counts():
    """Invariant 16."""
    policy = ToySampler()
    found, losses, experience = backward(method("draft"), policy, PixelReward(redness, mute=[1, 4]))
    x = policy.initial_noise(PROMPTS, experience.trajectory.seeds)
    end, _ = unrolled(policy, PROMPTS, x, 4)
    value = -redness(pixels_of(policy, end))[[0, 2, 3]].sum() / 5
    torch.testing.assert_close(found, gradient(policy, value), rtol=1e-9, atol=1e-12)
    assert sum(loss.log["reward"][1] for loss in losses) == 3


def test_updates_split_the_rows_and_each_draws_with_the_weights_it_finds():
    policy, reward = ToySampler(), PixelReward(redness)
    learner = method("draft", micro_batch=1, group=2, updates_per_rollout=2)
    experience = learner.collect(policy, PROMPTS[:2], reward, SEED, STEP)
    assert [prompt.uid for prompt in experience.trajectory.prompts] == [0, 0, 1, 1]
    assert len(set(experience.trajectory.seeds)) == 4
    assert [loss.step for loss in learner.losses(policy, experience)] == [False, True, False, True]


@pytest.mark.parametrize("name", ["alignprop", "draft", "draft-lv", "refl"])
def test_the_reward_rises(name):
    policy, reward, learner = ToySampler(), PixelReward(redness), method(name, grad_steps=2)
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=0.05)
    means = []
    for step in range(30):
        experience = learner.collect(policy, PROMPTS, reward, SEED, step)
        losses = list(learner.losses(policy, experience))
        for loss in losses:
            loss.total.backward()
            if loss.step:
                optimizer.step()
                optimizer.zero_grad()
        means.append(sum(loss.log["reward"][0] for loss in losses if loss.log) / 5)
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.1
    assert isinstance(learner, Method)
    assert isinstance(policy, Differentiable)
    assert learner.needs == {"reward", "reward_grad"}
    assert policy.initial_noise(PROMPTS, range(5)).shape == (5, *LATENT)


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "draft", "truncation": "uniform", "grad_steps": None}, "needs method.grad_steps"),
        ({"name": "refl", "truncation": "fixed", "grad_steps": None}, "the late step to look at"),
        ({"name": "refl", "renoised": 2}, "set method.output to sample"),
    ],
)
def test_settings_that_make_no_sense(keys, words):
    with pytest.raises(UsageError, match=words):
        MethodSettings(**keys)


def test_what_gives_no_gradient_is_told():
    with pytest.raises(GenalignError, match="'pixels' gives no gradient"):
        backward(method("draft"), ToySampler(), PixelReward(redness, differentiable=False))
    with pytest.raises(UsageError, match="draft needs a reward"):
        method("draft").collect(ToySampler(), PROMPTS, None, 0, 0)
    learner = method("draft")
    experience = learner.collect(ToyPolicy(), PROMPTS, PixelReward(redness), 0, 0)
    with pytest.raises(UsageError, match="through sampling, which ToyPolicy cannot"):
        next(iter(learner.losses(ToyPolicy(), experience)))
