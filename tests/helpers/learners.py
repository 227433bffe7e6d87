"""Methods on the toy policy: experience, gradients and losses by hand, a few steps of training."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from genalign.method import MethodSettings, build_method
from genalign.types import Media, Method, Policy, Prompt, Reward, Steps, Track, Trajectory
from tests.helpers.toy_policy import DIMS, ToyPolicy, ToyReward

PROMPTS = [Prompt(f"scene {i}", uid=i) for i in range(4)]
LOG2 = math.log(2)


def method(name: str, **keys) -> Method:
    return build_method(MethodSettings(name=name, **keys))


def experience_of(learner: Method, policy: Policy, reward: Reward | None = None, step: int = 0):
    return learner.collect(policy, PROMPTS, reward or ToyReward(), 11, step)


def backward(learner: Method, policy: ToyPolicy, experience) -> tuple[torch.Tensor, list]:
    """Sum of the micro-batches' gradients, and the losses."""
    policy.delta.grad = None
    losses = list(learner.losses(policy, experience))
    for loss in losses:
        loss.total.backward()
    return policy.delta.grad, losses


def mean(losses: list, name: str) -> float:
    total, count = (sum(loss.log[name][i] for loss in losses if loss.log) for i in (0, 1))
    return total / count


def train(learner: Method, policy: ToyPolicy, steps: int, lr: float = 0.05) -> list[float]:
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=lr)
    rewards = []
    for step in range(steps):
        experience = experience_of(learner, policy, step=step)
        rewards.append(float(ToyReward()(experience.trajectory.prompts, experience.trajectory.media).total.mean()))
        for loss in learner.losses(policy, experience):
            loss.total.backward()
            if loss.step:
                optimizer.step()
                optimizer.zero_grad()
                policy.step_ema(0.5)
    return rewards


PAIRED = ["diffusion-dpo", "flow-dpo"]
ROWS = ["flow-rwr", "sft", "nft", "awm"]


def disturbed(**keys) -> ToyPolicy:
    policy, generator = ToyPolicy(**keys), torch.Generator().manual_seed(3)
    with torch.no_grad():
        policy.delta += 0.2 * torch.randn(3, DIMS, generator=generator)
        policy.average += 0.2 * torch.randn(3, DIMS, generator=generator)
    return policy


def errors(policy: ToyPolicy, row: int, at: float, seed: int, experience, weights="policy") -> torch.Tensor:
    """target - out (D,) in float64 of one sample, with grad where the policy has it."""
    prompt, clean = experience.trajectory.prompts[row], experience.clean[row].double()
    noise = torch.randn(DIMS, generator=torch.Generator().manual_seed(seed)).double()
    x = at * clean + (1 - at) * noise
    with policy.weights(weights):
        return noise - clean - x / 2 + policy.drift([prompt])[0].double()


def asked(policy: ToyPolicy, count: int) -> list[tuple[float, list[int]]]:
    """(at, noise seeds) of the last `count` calls of fit."""
    return [(at, seeds) for _, at, seeds, *_ in policy.fits[-count:]]


class Pictures:
    """Six pairs of pictures; those of pair 4 are equal."""

    kind, rows_together = "image", 4

    def __init__(self) -> None:
        image = torch.rand(12, 3, 1, 2, generator=torch.Generator().manual_seed(5)).clamp(0.1, 0.9)
        image[9] = image[8]
        self.image = image.sort(0, descending=True).values.unflatten(0, (2, 6)).transpose(0, 1)  # winners are brighter
        self.image[4, 1] = self.image[4, 0]
        self.loaded: list[int] = []

    def load(self, pairs):
        self.loaded += pairs
        return Media(image=Track(self.image[list(pairs)].flatten(0, 1)))


class Seeing(ToyPolicy):
    """Its replay also tells x_t."""

    def replay(self, trajectory, rows, steps=None, versus=None):
        found = super().replay(trajectory, rows, steps, versus)
        columns = list(range(self.steps)) if steps is None else list(steps)
        return replace(found, features=trajectory.tape[list(rows)][:, columns])


class Given:
    """A policy whose log-probabilities are given, all steps in one replay."""

    def __init__(
        self,
        logp: torch.Tensor,
        old: torch.Tensor,
        mask: torch.Tensor,
        rows_together: int,
        reference: torch.Tensor | None = None,
    ) -> None:
        self.logp, self.mask, self.reference = logp, mask, old if reference is None else reference
        prompts = tuple(Prompt("x", uid=row) for row in range(len(logp)))
        group, seeds, width = torch.arange(len(logp)), (0,) * len(logp), logp.shape[1]
        self.trajectory = Trajectory(prompts, Media(), group, old, mask, seeds, rows_together, width)

    def replay(self, trajectory: Trajectory, rows: list[int], steps: list[int], versus: str | None = None) -> Steps:
        other = None if versus is None else self.reference[rows][:, steps]
        return Steps(self.logp[rows][:, steps], 1, self.mask[rows][:, steps], versus_score=other)
