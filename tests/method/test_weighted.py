"""Reward-weighted regression and plain fitting, against loops."""

from __future__ import annotations

import math

import pytest
import torch

from genalign.method import MethodSettings
from genalign.types import Media, Track
from tests.helpers.learners import PROMPTS, asked, backward, disturbed, errors, experience_of, method


@pytest.mark.parametrize(
    ("name", "keys"), [("flow-rwr", {"temperature": 0.05}), ("sft", {"keep": 2, "temperature": 0.2})]
)
def test_the_weighted_loss_is_the_loop(name, keys):
    learner, policy = method(name, group=4, **keys), disturbed(rows_together=16)
    experience = experience_of(learner, policy)
    gradient, losses = backward(learner, policy, experience)
    total, group, values = experience.scores.total.double(), experience.trajectory.group, []
    rows = experience.counted.nonzero().flatten().tolist()
    for at, seeds in asked(policy, 4):
        for row, seed in zip(rows, seeds, strict=True):
            best = sorted(total[group == group[row]].tolist(), reverse=True)[: keys.get("keep")]
            share = math.exp(total[row] / keys["temperature"]) / sum(math.exp(t / keys["temperature"]) for t in best)
            values.append(share * len(best) * errors(policy, row, at, seed, experience).square().mean())
    expected = torch.stack(values).mean()
    assert len(values) == 4 * (16 if name == "flow-rwr" else 8)
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["flow-rwr", "sft"])
def test_the_base_draws_where_it_is_asked_to(name):
    learner, policy = method(name, group=4, drawn_by="reference"), disturbed()
    experience = experience_of(learner, policy)
    with policy.weights("reference"):
        expected = policy.clean(policy.rollout(PROMPTS, 4, experience.trajectory.seeds))
    torch.testing.assert_close(experience.clean, expected)
    assert (experience_of(method(name, group=4), policy).clean - expected).abs().max() > 0.1
    assert policy.which == "policy"


def test_temperatures_lead_from_plain_fitting_to_the_best_sample():
    policy = disturbed()

    def gradient(name: str, **keys) -> torch.Tensor:
        learner = method(name, group=4, **keys)
        return backward(learner, policy, experience_of(learner, policy))[0].clone()

    hot, cold, best = gradient("flow-rwr", temperature=1e6), gradient("flow-rwr", temperature=1e-6), gradient("sft")
    torch.testing.assert_close(cold, best, atol=1e-6, rtol=1e-4)
    plain = gradient("sft", keep=4, temperature=1e9)
    torch.testing.assert_close(hot, plain, atol=1e-6, rtol=1e-4)
    assert (hot - cold).abs().max() > 1e-3


class Given:
    """Four pictures to learn from."""

    kind, rows_together = "image", 3

    def __init__(self) -> None:
        self.image = torch.rand(4, 3, 1, 2, generator=torch.Generator().manual_seed(6)).clamp(0.1, 0.9)
        self.loaded: list[int] = []

    def load(self, numbers):
        self.loaded += numbers
        return Media(image=Track(self.image[list(numbers)]))


def test_the_loss_of_given_samples_is_the_denoising_error_alone():
    """No reward, no rollout and no weight: the mean over samples, draws and latent dims, each sample encoded once."""
    given, policy = Given(), disturbed(rows_together=3)
    learner = MethodSettings(name="sft").build_on_samples(given)
    assert learner.needs == {"forward"}
    experience = learner.collect(policy, PROMPTS, None, 11, 0)
    assert experience.scores is None
    torch.testing.assert_close(experience.clean, torch.stack([image.flatten().logit() for image in given.image]))
    gradient, losses = backward(learner, policy, experience)
    values = [
        errors(policy, row, at, seed, experience).square().mean()
        for (at, seeds), block in zip(asked(policy, 8), [[0, 1, 2]] * 4 + [[3]] * 4, strict=True)
        for row, seed in zip(block, seeds, strict=True)
    ]
    expected = torch.stack(values).mean()
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.item(), rel=1e-5)
    (reference,) = torch.autograd.grad(expected, policy.delta)
    torch.testing.assert_close(gradient, reference, atol=1e-6, rtol=1e-4)
    again = learner.collect(policy, PROMPTS[::-1], None, 11, 1)
    assert torch.equal(again.clean, experience.clean.flip(0))
    assert given.loaded == [0, 1, 2, 3]
    seeds = [asked(policy, 8)[0][1], again.trajectory.seeds]
    assert len({*seeds[0], *seeds[1]}) == len(seeds[0]) + len(seeds[1])  # another noise in another step


def test_given_samples_become_likely():
    given, policy = Given(), disturbed()
    learner = MethodSettings(name="sft").build_on_samples(given)
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=0.05)
    error = []
    for step in range(60):
        losses = list(learner.losses(policy, learner.collect(policy, PROMPTS, None, 0, step)))
        for loss in losses:
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        error.append(sum(loss.total.item() for loss in losses))
    assert sum(error[-10:]) < 0.95 * sum(error[:10])


def test_only_fine_tuning_does_without_a_reward():
    assert MethodSettings(name="sft").learns_from_samples
    assert not MethodSettings(name="flow-rwr").learns_from_samples
