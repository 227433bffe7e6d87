"""Reinforcement on the forward process: DiffusionNFT and AWM. No stochastic sampler, no recorded step."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genalign.method.common import (
    Collecting,
    over_ranks,
    reward_log,
    rollout_seed,
    sample_and_score,
    sums,
    without_pauses,
)
from genalign.method.forward import (
    ForwardExperience,
    ForwardSettings,
    Unit,
    blocks_of,
    fit_losses,
    fitting,
    shares,
    sibling_seeds,
    stratified_times,
    without_steps,
)
from genalign.method.losses import Std, advantages, nft_loss
from genalign.method.route import Route, advantages_by_medium
from genalign.method.surrogates import ppo_clip
from genalign.types import (
    Experience,
    Loss,
    Method,
    Policy,
    Prompt,
    Reward,
    Scoring,
    Steps,
    Trajectory,
    UsageError,
    Weights,
)


class MatchingSettings(ForwardSettings):
    """What both read: the advantage of a sample."""

    route: Route = "modality"
    """Where a policy draws several media at once, such as video with sound: each reward's advantage reaches only those
    that it reads, and each medium's mean squared error counts alike (OmniNFT); or the sum of all reaches both, in the
    error of all latents together."""
    std: Std = "batch"
    """Divide a centred score by the standard deviation of its group, of the whole batch, or not at all."""
    advantage_clip: float = Field(5.0, gt=0)
    """Bound on |advantage|."""

    @model_validator(mode="after")
    def _has_siblings(self) -> Self:
        self.require_siblings()
        return self


class NftSettings(MatchingSettings):
    """DiffusionNFT: the old model draws, and the new one is pushed from it towards good samples, away from bad ones."""

    presets: ClassVar = {"nft": {"group": 16, "beta": 1.0}}

    beta: float = Field(1.0, gt=0)
    """Share of the new model in what is fitted to good samples; a smaller one pushes it further from the old model."""

    def build(self, folder: Path) -> Method:
        return Nft(self)


class AwmSettings(MatchingSettings):
    """AWM: the clipped policy gradient of the forward process's likelihood."""

    presets: ClassVar = {"awm": {"group": 16, "clip_nats": (0.01, 0.01)}}

    clip_nats: tuple[float, float] = (0.01, 0.01)
    """How far, down and up, minus a sample's mean squared error may move before its gradient stops."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the mean squared distance of the output from the reference's."""

    def build(self, folder: Path) -> Method:
        return Awm(self)


def collect_advantages(
    settings: MatchingSettings,
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: Reward | None,
    seed: int,
    weights: Weights,
) -> Generator[Scoring, None, ForwardExperience]:
    """Samples of the given weights with their advantages; the seed is the step's own."""
    s, forward = settings, fitting(policy, settings.name)
    trajectory, scores = yield from sample_and_score(policy, prompts, reward, s.group, seed, s.name, weights=weights)
    everyone, group, here = over_ranks(scores, trajectory.group)
    rule = partial(advantages, group=group, std=s.std)
    advantage, counted, spread = advantages_by_medium(everyone, group, trajectory.about, reward, s.route, rule)
    return ForwardExperience(
        trajectory=without_steps(trajectory),
        scores=scores,
        advantage=advantage[here].clamp(-s.advantage_clip, s.advantage_clip),
        counted=counted[here],
        log={**reward_log(everyone), **spread},
        clean=forward.clean(trajectory),
        times=stratified_times(seed, s.draws, s.times),
    )


def fit_unit(
    policy: Policy, name: str, experience: ForwardExperience, unit: Unit, versus: Weights | None
) -> tuple[Steps, Tensor]:
    """The unit's Steps, and the advantage of its rows in each of their columns: one, or one a medium where advantages
    are routed to media."""
    rows, draw = unit
    trajectory: Trajectory = experience.trajectory
    prompts, seeds = [trajectory.prompts[row] for row in rows], sibling_seeds(trajectory, rows, draw)
    fitted = fitting(policy, name).fit(prompts, experience.clean[rows], experience.times[draw], seeds, versus)
    if versus is not None and fitted.gap is None:
        cure = "take vrpo, grpo, or awm with kl_beta 0"
        raise UsageError(f"method {name} needs squared errors, but this policy has likelihoods instead; {cure}")
    assert experience.advantage is not None
    fitted = fitted if experience.advantage.ndim == 2 else fitted.together()
    return fitted, experience.advantage_of(rows, range(fitted.score.shape[1])).to(fitted.score.device)


class Nft(Collecting):
    """DiffusionNFT (arXiv 2509.16117): the forward process learns from good and bad samples of the old model at once.

    The old model is the "ema" weights, which `train.ema` moves after every update: they draw the samples, and the two
    models that are fitted lie on the line through the old and the new output. A sample counts as good by
    (1 + advantage / advantage_clip) / 2.

    Departs from the paper: (1) Only (score, versus_score, gap) of Policy.fit are used; losses.nft_loss lists what that
    changes. (2) The old weights move after every optimizer update at a constant rate, not once a rollout at a rising
    one. (3) Times are stratified over `times` and common to a step; its code takes all of them. (4) Siblings share
    their noise, so that what it adds to the errors of all nearly cancels. (5) There is no further penalty towards the
    reference (its code has one of 1e-4), and a prompt without spread teaches nothing.
    """

    def __init__(self, settings: NftSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.needs = frozenset({"rollout", "reward", "forward", "ema"})

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        return collect_advantages(self.settings, policy, prompts, reward, rollout_seed(seed, step), "ema")

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        assert isinstance(experience, ForwardExperience)
        return fit_losses(
            policy, experience, self.settings.updates_per_rollout, partial(self._loss, policy, experience)
        )

    def _loss(self, policy: Policy, experience: ForwardExperience, total: float, unit: Unit) -> Loss:
        s = self.settings
        fitted, advantage = fit_unit(policy, self.name, experience, unit, "ema")
        assert fitted.versus_score is not None
        assert fitted.gap is not None
        score, old, gap = fitted.score, fitted.versus_score, fitted.gap  # (R,M)
        share, _ = shares(fitted, experience.times[unit[1]])
        optimality = (1 + advantage / s.advantage_clip) / 2
        loss = s.advantage_clip * nft_loss(score, old, gap, optimality, s.beta, fitted.count, share)
        log = {"loss": loss, "error": -score / fitted.count, "gap": gap / fitted.count}
        return Loss(loss.sum() / total, sums(log, torch.ones_like(loss, dtype=torch.bool)))


class Awm:
    """Advantage weighted matching (arXiv 2509.25050): PPO with the forward process's error as minus the log-likelihood.

    log p(x0) is -|target - out|^2, averaged over latent dims, at times and noises that the old and the new likelihood
    share. With one update a rollout the ratio is 1, and the gradient that of advantage x error.

    Departs from the paper: (1) With one update a rollout the old likelihood is the present one, detached, and costs
    nothing. (2) Times are stratified over `times` and common to a step. (3) Siblings share their noise, so
    that what it adds to the errors of all cancels. (4) The penalty is towards the reference alone; its code has a
    second one, towards an average. (5) A prompt without spread teaches nothing.
    """

    def __init__(self, settings: AwmSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.needs = frozenset({"rollout", "reward", "forward", *(["reference"] if settings.kl_beta else [])})

    def collect(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Experience:
        here = rollout_seed(seed, step)
        return without_pauses(collect_advantages(self.settings, policy, prompts, reward, here, "policy"))

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        assert isinstance(experience, ForwardExperience)
        updates = self.settings.updates_per_rollout
        old: dict[tuple[int, int], Tensor] = {}  # (first row of a micro-batch, draw) -> score (R,M)
        if updates > 1:
            with torch.no_grad():
                for block in blocks_of(experience):
                    for draw in range(len(experience.times)):
                        fitted, _ = fit_unit(policy, self.name, experience, (block, draw), None)
                        old[block[0], draw] = fitted.score
        yield from fit_losses(policy, experience, updates, partial(self._loss, policy, experience, old))

    def _loss(
        self,
        policy: Policy,
        experience: ForwardExperience,
        old: Mapping[tuple[int, int], Tensor],
        total: float,
        unit: Unit,
    ) -> Loss:
        s, (rows, draw) = self.settings, unit
        fitted, advantage = fit_unit(policy, self.name, experience, unit, "reference" if s.kl_beta else None)
        score = fitted.score / fitted.count  # (R,M)
        before = old[rows[0], draw] / fitted.count if old else score.detach()
        loss, clipped = ppo_clip(score, before, advantage, *s.clip_nats)
        log = {"ratio/mean": (score - before).exp(), "clip_ratio/region_mean": clipped, "error": -score}
        if fitted.gap is not None:
            log["gap"] = fitted.gap / fitted.count
            loss = loss + s.kl_beta * log["gap"]
        log["loss"] = loss
        return Loss(loss.sum() / total, sums(log, torch.ones_like(loss, dtype=torch.bool)))
