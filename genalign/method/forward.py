"""What methods on the forward process share: clean latents, their times and noise, and updates.

Such a method needs no recorded step: any sampler draws its samples, and what moves is how well they are denoised again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genalign.method.settings import MethodSettings
from genalign.method.updates import deal, emit
from genalign.types import (
    Experience,
    ForwardProcess,
    Loss,
    Media,
    Policy,
    Prompt,
    Steps,
    Trajectory,
    UsageError,
    sample_seed,
)

Reduction = Literal["sum", "mean"]
Unit = tuple[list[int], int]  # rows, draw
KEPT_BYTES = 2**30  # of encoded samples


class Loads(Protocol):
    """What hands out given samples by their numbers."""

    def load(self, numbers: Sequence[int]) -> Media: ...


class ForwardSettings(MethodSettings):
    """Where on the forward process a method looks."""

    draws: int = Field(4, ge=1)
    """Times and noises a sample or pair is looked at in an update, one from each of as many equal parts of `times`."""
    times: tuple[float, float] = (0.0, 1.0)
    """Part of the path that times are drawn from, 0 pure noise, 1 the clean sample; a policy may read them in steps of
    1/50, so that of [0, 0.02] nothing but the noise differs between draws."""

    @model_validator(mode="after")
    def _is_a_part(self) -> Self:
        low, high = self.times
        if not 0 <= low < high <= 1:
            raise UsageError(
                f"method.times is [{low:g}, {high:g}]; give a part of the path, such as [0, 0.2] for its noisy end"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class ForwardExperience(Experience):
    """clean: (B,*L), the samples that the forward process starts from. times: `at` of each draw, the same for all rows.

    The trajectory has no columns: its steps are never replayed.
    """

    clean: Tensor
    times: tuple[float, ...]


def fitting(policy: object, method: str) -> ForwardProcess:
    """The policy as one that has a forward process.

    Raises:
        UsageError: it has none.
    """
    if not isinstance(policy, ForwardProcess):
        raise UsageError(
            f"method {method} needs the forward process of a diffusion model, which {type(policy).__name__} lacks; "
            f"take dpo, grpo or rloo for a language model"
        )
    return policy


def given_rows(prompts: Sequence[Prompt], seeds: Sequence[int], rows_together: int) -> Trajectory:
    """Given samples as rows of a trajectory that nobody rolled out: of these prompts, with a seed each."""
    return Trajectory(
        prompts=tuple(prompts),
        media=Media(),
        group=torch.tensor([prompt.uid for prompt in prompts]),
        logp=torch.zeros(len(prompts), 0),
        mask=torch.zeros(len(prompts), 0, dtype=torch.bool),
        seeds=tuple(seeds),
        rows_together=rows_together,
        steps_together=1,
    )


class Encoded:
    """The clean latents of given samples, each encoded once, as far as KEPT_BYTES of them reach. each: rows of one."""

    def __init__(self, source: Loads, each: int) -> None:
        self.source, self.each = source, each
        self._kept: dict[int, Tensor] = {}  # number -> (each,*L) on the CPU

    def __call__(self, forward: ForwardProcess, numbers: Sequence[int]) -> Tensor:
        """(N,each,*L) of these numbers."""
        new = [number for number in dict.fromkeys(numbers) if number not in self._kept]
        fresh: dict[int, Tensor] = {}
        if new:
            latents = forward.encode(self.source.load(new)).cpu()
            fresh = dict(zip(new, latents.unflatten(0, (-1, self.each)), strict=True))
        found = torch.stack([fresh[number] if number in fresh else self._kept[number] for number in numbers])
        room = KEPT_BYTES // (found[0].numel() * found.element_size())
        self._kept.update({number: fresh[number].clone() for number in new[: max(0, room - len(self._kept))]})
        return found


def without_steps(trajectory: Trajectory) -> Trajectory:
    """The rollout without what its replay would need, which may be large."""
    return replace(trajectory, logp=trajectory.logp[:, :0], mask=trajectory.mask[:, :0], tape=None)


def stratified_times(seed: int, count: int, part: tuple[float, float] = (0.0, 1.0)) -> tuple[float, ...]:
    """One `at` drawn from each of `count` equal parts of [low, high)."""
    low, high = part
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(sample_seed(seed, -2, 0)), dtype=torch.float64)
    return tuple(float(low + (high - low) * (k + u) / count) for k, u in enumerate(drawn))


def noise_seeds(trajectory: Trajectory, rows: Sequence[int], draw: int) -> list[int]:
    """A seed for the noise of each row, which depends on the sample and the draw alone."""
    return [sample_seed(trajectory.seeds[row], draw, -1) for row in rows]


def sibling_seeds(trajectory: Trajectory, rows: Sequence[int], draw: int) -> list[int]:
    """The same, but siblings share their noise: where their weights add up to zero, what it adds to all cancels."""
    group = trajectory.group.tolist()
    return noise_seeds(trajectory, [group.index(group[row]) for row in rows], draw)


def shares(steps: Steps, at: float) -> tuple[float, float]:
    """The squared errors of x0_hat and of eps_hat in one of the model's output, at x_t = a x0 + s eps.

    A policy that does not give them is taken for a velocity, (s^2, a^2), on the straight path with s = 1 - at.
    """
    return ((1 - at) ** 2, at**2) if steps.shares is None else steps.shares


def blocks_of(experience: ForwardExperience) -> list[list[int]]:
    """The counted rows in micro-batches."""
    size = experience.trajectory.rows_together
    assert experience.counted is not None
    rows = experience.counted.nonzero().flatten().tolist()
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def fit_losses(
    policy: Policy, experience: ForwardExperience, updates: int, loss: Callable[[float, Unit], Loss]
) -> Iterator[Loss]:
    """The losses of all updates: each micro-batch at every draw; `loss` takes the global count and the unit."""
    blocks, draws = blocks_of(experience), range(len(experience.times))
    counts = [float(len(block) * len(draws)) for block in blocks]
    for mine, total in deal(blocks, counts, updates, experience.trajectory):
        yield from emit(policy, [(block, draw) for block in mine for draw in draws], partial(loss, total))
