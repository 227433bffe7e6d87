"""The gradient of the reward through sampling: AlignProp, DRaFT and ReFL are settings of one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genalign.method.common import rollout_seed, sums
from genalign.method.settings import MethodSettings
from genalign.method.updates import deal, emit
from genalign.types import (
    Differentiable,
    Experience,
    GenalignError,
    Loss,
    Media,
    Method,
    Policy,
    Prompt,
    Reward,
    Trajectory,
    UsageError,
    sample_seed,
)

Unit = tuple[list[int], int]  # rows, which copy of them: 0 is the sample, 1.. its re-noised copies


class PathwiseSettings(MethodSettings):
    """AlignProp, DRaFT-K, DRaFT-LV, ReFL: how much of sampling keeps its graph, and what the reward looks at."""

    presets: ClassVar = {
        "alignprop": {"truncation": "gaussian", "grad_steps": 8, "spread": 5.0},
        "draft": {"grad_steps": 1},
        "draft-lv": {"grad_steps": 1, "renoised": 2},
        "refl": {"truncation": "uniform", "grad_steps": 10, "output": "x0_hat"},
    }

    group: int = Field(1, ge=1)
    """Samples per prompt."""
    micro_batch: int = Field(8, ge=1)
    """Samples that are drawn, decoded and scored with a graph at a time (memory, not the result)."""
    truncation: Literal["fixed", "gaussian", "uniform"] = "fixed"
    """How many last steps keep the graph: grad_steps; or drawn anew each step of training: normal around grad_steps,
    or any number up to grad_steps."""
    grad_steps: int | None = Field(1, ge=1)
    """See truncation; null: all of them."""
    spread: float = Field(1.0, gt=0)
    """Standard deviation of the normal draw, in sampling steps; draws beyond 1 and 2 grad_steps - 1 are repeated."""
    output: Literal["sample", "x0_hat"] = "sample"
    """What the reward looks at: the finished sample, or what the first step with a graph expects it to be (ReFL)."""
    renoised: int = Field(0, ge=0)
    """Further copies of each sample, noised anew to its last step and denoised again with a graph (DRaFT-LV)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.grad_steps is None and self.truncation != "fixed":
            raise UsageError(f"method.truncation {self.truncation} needs method.grad_steps; give it a number")
        if self.grad_steps is None and self.output == "x0_hat":
            raise UsageError("method.output x0_hat needs method.grad_steps, which is the late step to look at")
        if self.renoised and self.output == "x0_hat":
            raise UsageError("method.renoised copies finished samples; set method.output to sample")
        return self

    def build(self, folder: Path) -> Method:
        return RewardGradient(self)


@runtime_checkable
class Retaking(Protocol):
    """A policy that can take the last step of sampling again."""

    def retake(self, prompts: Sequence[Prompt], clean: Tensor, seeds: Sequence[int]) -> Media:
        """Clean latents (B,*L), noised by each row's seed to where the sampler's last step starts; that step taken
        again with grad, and decoded."""
        ...


@dataclass(frozen=True)
class Draws(Experience):
    """What is to be sampled in losses(): rows, and how many steps keep their graph this time."""

    reward: Reward | None = None
    grad_steps: int | None = None


class RewardGradient:
    """Maximise the mean reward of samples by its gradient through the last K steps of deterministic sampling.

    AlignProp (arXiv 2310.03739) draws K; DRaFT-K (arXiv 2309.17400) fixes it; DRaFT-LV averages in more copies of the
    last step, for less variance; ReFL (arXiv 2304.05977) stops at a random late step and scores its x0_hat. The steps
    before run without a graph; where more than one step keeps it, denoiser calls are recomputed in backward.

    Departs from the papers: (1) The reward sees pixels in [0,1], once de-normalised, and is itself what is maximised:
    no target score, no ReLU, no pre-training term. (2) Sampling is deterministic (AlignProp: DDIM, eta 1). (3) The loss
    is divided by the rows over all ranks; a row whose reward cannot be read counts among them and pulls nowhere. (4) K
    is drawn once a training step, so that neither ranks nor micro-batches change it. (5) DRaFT-LV's copies are averaged
    with the sample, not added. (6) AlignProp's and ReFL's numbers are for 50 and 40 sampling steps; set your own.
    """

    def __init__(self, settings: PathwiseSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.needs = frozenset({"reward", "reward_grad"})

    def collect(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Experience:
        """Nothing is sampled yet: seeds, and the step's K."""
        if reward is None:
            raise UsageError(f"method {self.name} needs a reward; add the key 'reward' to the recipe")
        s, here = self.settings, rollout_seed(seed, step)
        rows = tuple(prompt for prompt in prompts for _ in range(s.group))
        trajectory = Trajectory(
            prompts=rows,
            media=Media(),
            group=torch.tensor([prompt.uid for prompt in rows], dtype=torch.long),
            logp=torch.zeros(len(rows), 0),
            mask=torch.zeros(len(rows), 0, dtype=torch.bool),
            seeds=tuple(sample_seed(here, prompt.uid, k) for prompt in prompts for k in range(s.group)),
            rows_together=s.micro_batch,
            steps_together=1,
        )
        return Draws(trajectory, None, reward=reward, grad_steps=self._steps(here))

    def _steps(self, seed: int) -> int | None:
        s = self.settings
        if s.truncation == "fixed" or s.grad_steps is None:
            return s.grad_steps
        generator = torch.Generator().manual_seed(sample_seed(seed, -1, 0))
        if s.truncation == "uniform":
            return int(torch.randint(1, s.grad_steps + 1, (), generator=generator))
        while True:
            drawn = round(s.grad_steps + s.spread * float(torch.randn((), generator=generator)))
            if 1 <= drawn <= 2 * s.grad_steps - 1:
                return drawn

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        assert isinstance(experience, Draws)
        if not isinstance(policy, Differentiable):
            raise UsageError(
                f"method {self.name} needs gradients through sampling, which {type(policy).__name__} cannot give"
            )
        if self.settings.renoised and not isinstance(policy, Retaking):
            raise UsageError(f"method.renoised takes the last step again, which {type(policy).__name__} cannot; set 0")
        trajectory = experience.trajectory
        rows, size = range(len(trajectory.prompts)), trajectory.rows_together
        blocks = [list(rows[i : i + size]) for i in rows[::size]]
        copies = 1 + self.settings.renoised
        dealt = deal(blocks, [float(len(block)) for block in blocks], self.settings.updates_per_rollout, trajectory)
        for mine, total in dealt:
            units = [(block, copy) for block in mine for copy in range(copies)]
            clean: list[Tensor] = []  # of the block whose copies come next
            yield from emit(policy, units, partial(self._loss, policy, experience, total * copies, clean))

    def _loss(self, policy: Policy, experience: Draws, divisor: float, clean: list[Tensor], unit: Unit) -> Loss:
        rows, copy = unit
        trajectory, reward = experience.trajectory, experience.reward
        assert reward is not None
        prompts, seeds = [trajectory.prompts[row] for row in rows], [trajectory.seeds[row] for row in rows]
        if copy:
            assert isinstance(policy, Retaking)
            fresh = [sample_seed(seed, prompt.uid, copy) for seed, prompt in zip(seeds, prompts, strict=True)]
            media = policy.retake(prompts, clean[0], fresh)
        else:
            assert isinstance(policy, Differentiable)
            media, clean[:] = self._sample(policy, prompts, seeds, experience.grad_steps)
        scores = reward(prompts, media, trajectory.group[rows])
        readable = scores.total_valid
        if readable.any() and not scores.total.requires_grad:
            raise GenalignError(
                f"reward {reward.name!r} gives no gradient to the pixels, though it is declared differentiable; "
                f"mend it, or take a method that only needs scores"
            )
        loss = -torch.where(readable, scores.total, 0.0)
        logged: dict[str, tuple[float, float]] = {}
        if not copy:
            logged = sums({"reward": scores.total, "loss": loss}, readable)
            for k, name in enumerate(scores.names):
                logged |= sums({f"rewards/{name}/mean": scores.values[:, k]}, scores.valid[:, k])
            if experience.grad_steps is not None:
                logged["grad_steps"] = (float(experience.grad_steps), 1.0)
        return Loss(loss.sum() / divisor, logged)

    def _sample(
        self, policy: Differentiable, prompts: list[Prompt], seeds: list[int], grad_steps: int | None
    ) -> tuple[Media, list[Tensor]]:
        """Media with a graph, and the clean latents that re-noised copies start from."""
        seen: list[Tensor] = []

        def look(step: int, x: Tensor, out: Tensor, x0: Tensor) -> Tensor:
            if self.settings.output == "x0_hat" and x0.requires_grad:
                raise _Seen(x0)
            seen[:] = [x0.detach()]
            return out

        recompute = grad_steps is None or grad_steps > 1
        late = self.settings.output == "x0_hat"
        try:
            media = policy.generate_with_grad(
                prompts,
                seeds,
                grad_steps=grad_steps,
                guide=look if late or self.settings.renoised else None,
                checkpoint=recompute and not late,
            )
        except _Seen as at:
            return policy.decode(at.x0), []
        if late:
            raise GenalignError(f"no step of {type(policy).__name__} kept a graph; give it something to train")
        return media, seen


class _Seen(BaseException):
    """Leaves the sampler at the step whose x0_hat is wanted; not a failure, so no other handler may catch it."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0 = x0
