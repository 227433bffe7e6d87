"""Regression to a policy's own better samples, or to given ones: Flow-RWR and supervised fine-tuning, one class."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genalign.method.common import Collecting, over_ranks, reward_log, rollout_seed, sample_and_score, sums
from genalign.method.forward import (
    Encoded,
    ForwardExperience,
    ForwardSettings,
    Unit,
    fit_losses,
    fitting,
    given_rows,
    noise_seeds,
    stratified_times,
    without_steps,
)
from genalign.method.losses import regression_weights
from genalign.method.settings import SampleSource
from genalign.types import Experience, Loss, Method, Policy, Prompt, Reward, Scoring, UsageError, sample_seed


class WeightedSettings(ForwardSettings):
    """Flow-RWR and best-of-n: which samples of a group are learnt from, and how much from each. Of given samples `sft`
    learns from all alike."""

    presets: ClassVar = {
        "flow-rwr": {"group": 8, "temperature": 0.1, "keep": None},
        "sft": {"group": 8, "temperature": 1.0, "keep": 1},
    }

    temperature: float = Field(0.1, gt=0)
    """A sample's weight is softmax(reward / temperature) over those of its prompt that are kept."""
    keep: int | None = Field(None, ge=1)
    """Best samples of a prompt that are learnt from; null: all."""
    drawn_by: Literal["policy", "reference"] = "policy"
    """Whose samples are learnt from; reference: the base's, as from a data set, so that nothing compounds."""

    @model_validator(mode="after")
    def _chooses(self) -> Self:
        self.require_siblings()
        if self.keep is not None and self.keep > self.group:
            raise UsageError(f"method.keep is {self.keep}, but a prompt has only {self.group} samples; lower it")
        return self

    def build(self, folder: Path) -> Method:
        return Weighted(self)

    @property
    def learns_from_samples(self) -> bool:
        return self.name == "sft"

    def build_on_samples(self, samples: SampleSource) -> Method:
        return Weighted(self, samples)


@dataclass(frozen=True, kw_only=True)
class WeightedExperience(ForwardExperience):
    weight: Tensor  # (B,), mean 1 over counted rows


class Weighted(Collecting):
    """E[w |target - out|^2] over the policy's own samples, w from their rewards: regression, with no policy gradient.

    Flow-RWR (arXiv 2501.13918) weighs by exp(r / temperature); best-of-n fine-tuning (the SFT that arXiv 2505.05470
    compares with) keeps the best. Given samples, pictures, clips or sounds, all have w = 1 and no reward is asked: the
    loss that the model was trained by.

    Departs from the papers: (1) The exponential is normalised within each prompt, so that a reward's offset changes
    nothing and no weight can be negative or overflow. (2) Samples are drawn anew in each step, not once beforehand, by
    the policy, or by the base as in the papers. (3) The error is the mean over latent dims (without the (1 - t)^2 that
    its first paper drops too). (4) Times are stratified over `times`. (5) A prompt without spread teaches nothing.
    """

    def __init__(self, settings: WeightedSettings, samples: SampleSource | None = None) -> None:
        self.settings, self.samples = settings, samples
        self.name = settings.name
        self.needs = frozenset({"forward"} if samples else {"rollout", "reward", "forward"})
        self._encoded = None if samples is None else Encoded(samples, 1)

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        s, here = self.settings, rollout_seed(seed, step)
        forward = fitting(policy, self.name)
        if self.samples is not None and self._encoded is not None:
            clean = self._encoded(forward, [prompt.uid for prompt in prompts])[:, 0]
            return self._given(self.samples, clean, prompts, here)
        trajectory, scores = yield from sample_and_score(
            policy, prompts, reward, s.group, here, self.name, weights=s.drawn_by
        )
        everyone, group, mine = over_ranks(scores, trajectory.group)
        weight, counted = regression_weights(everyone, group, s.temperature, s.keep)
        used = weight[counted].double()
        alike = float(used.sum() ** 2 / used.square().sum() / len(used)) if len(used) else 0.0
        return WeightedExperience(
            trajectory=without_steps(trajectory),
            scores=scores,
            counted=counted[mine],
            log={**reward_log(everyone), "weight/effective": alike},
            clean=forward.clean(trajectory),
            times=stratified_times(here, s.draws, s.times),
            weight=weight[mine],
        )

    def _given(self, samples: SampleSource, clean: Tensor, prompts: Sequence[Prompt], here: int) -> Experience:
        """The given samples of these prompts, all of one weight, each with a noise of its own in every step."""
        s, seeds = self.settings, [sample_seed(here, prompt.uid, -1) for prompt in prompts]
        return WeightedExperience(
            trajectory=given_rows(prompts, seeds, samples.rows_together),
            scores=None,
            counted=torch.ones(len(prompts), dtype=torch.bool),
            clean=clean,
            times=stratified_times(here, s.draws, s.times),
            weight=torch.ones(len(prompts)),
        )

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        assert isinstance(experience, WeightedExperience)
        return fit_losses(
            policy, experience, self.settings.updates_per_rollout, partial(self._loss, policy, experience)
        )

    def _loss(self, policy: Policy, experience: WeightedExperience, total: float, unit: Unit) -> Loss:
        rows, draw = unit
        trajectory = experience.trajectory
        fitted = (
            fitting(policy, self.name)
            .fit(
                [trajectory.prompts[row] for row in rows],
                experience.clean[rows],
                experience.times[draw],
                noise_seeds(trajectory, rows, draw),
            )
            .together()
        )
        error = -fitted.score[:, 0] / fitted.count  # (R,)
        loss = experience.weight[rows].to(error.device) * error
        return Loss(loss.sum() / total, sums({"loss": loss, "error": error}, torch.ones_like(error, dtype=torch.bool)))
