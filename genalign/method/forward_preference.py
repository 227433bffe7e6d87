"""Preferences by the forward process: Diffusion-DPO, Flow-DPO and VRPO, on pairs made by a reward or on given ones."""

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
    Reduction,
    fitting,
    given_rows,
    shares,
    sibling_seeds,
    stratified_times,
    without_steps,
)
from genalign.method.losses import PAIR_RULES, PairRule
from genalign.method.preference_losses import dpo_loss
from genalign.method.settings import PairSource
from genalign.method.updates import deal, emit, packed
from genalign.ranks import all_sum
from genalign.types import Experience, Loss, Method, Policy, Prompt, Reward, Scoring, Steps, UsageError, sample_seed

Unit = tuple[Tensor, Sequence[int]]  # pairs (P,2), draws whose mean is one comparison


class ForwardPreferenceSettings(ForwardSettings):
    """Diffusion-DPO, Flow-DPO and VRPO: how steep the preference is, and in what units."""

    learns_from: ClassVar = frozenset({"image", "video", "text"})
    presets: ClassVar = {
        "diffusion-dpo": {"group": 4, "beta": 5000.0, "reduction": "mean"},
        "flow-dpo": {"group": 4, "beta": 500.0, "reduction": "mean"},
        "vrpo": {"group": 4, "beta": 0.2, "reduction": "sum", "draws": 8, "together": True},
    }

    beta: float = Field(500.0, gt=0)
    """Inverse temperature, per half a squared error of `reduction`; of a diffusion language model, per nat of its
    evidence bound."""
    together: bool = False
    """Whether the draws of a pair are averaged within its sigmoid, as one estimate of both likelihoods (VRPO), instead
    of each being a comparison of its own."""
    reduction: Reduction = "mean"
    """What beta is per: the error summed over latent dims, or their mean."""
    beta_schedule: Literal["constant", "time"] = "constant"
    """Weigh errors of the model's output alike at all times, or as the errors of the noise that they imply, which are
    (1 - t)^2 of a velocity's, a^2 of v's and all of epsilon's."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the winner's own mean squared error, which keeps it likely while the margin grows."""
    pair_rule: PairRule = "best_worst"
    """Pairs made of a scored group: its best and worst sample, every two, or every two of which one is at least as good
    by every weighted aspect of the reward."""
    min_gap: float = Field(0.0, ge=0)
    """Least difference of reward between winner and loser."""
    cycle: int | None = Field(None, ge=1)
    """Given pictures: after so many steps times and noises repeat, and the reference's errors are remembered."""

    @model_validator(mode="after")
    def _is_weighed(self) -> Self:
        if self.beta_schedule == "time" and self.times[1] <= 0.02:
            raise UsageError(
                f"method.beta_schedule: time gives pure noise no weight, and method.times [{self.times[0]:g}, "
                f"{self.times[1]:g}] holds nothing else; widen method.times, or take constant"
            )
        return self

    def build(self, folder: Path) -> Method:
        if self.cycle is not None:
            raise UsageError("method.cycle is for given pictures, but these pairs are drawn anew each step; drop it")
        self.require_siblings()
        return ForwardPreference(self)

    def build_on(self, pairs: PairSource, folder: Path = Path()) -> Method:
        return ForwardPreference(self, pairs) if pairs.kind in self.learns_from else super().build_on(pairs, folder)


@dataclass(frozen=True, kw_only=True)
class PairExperience(ForwardExperience):
    noise: Tensor  # (P,) int64, a seed for each pair, which both of its samples share, and its siblings where they can
    keys: tuple[tuple[int, int], ...] | None = None  # (P,) which pair at which turn of the cycle; None: seen only once

    def noised_rows(self, pack: Tensor) -> tuple[Tensor, Tensor]:
        """The noised samples of a pack of pairs: (R,2) row and noise of each, once; (P,2) where a pair's two are.

        Pairs that share a sample and its noise are denoised together, once.
        """
        assert self.pairs is not None
        both = torch.stack([self.pairs[pack], self.noise[pack, None].expand(-1, 2)], 2)  # (P,2,2)
        distinct, place = torch.unique(both.flatten(0, 1), dim=0, return_inverse=True)
        return distinct, place.unflatten(0, (-1, 2))

    def packs(self) -> list[Tensor]:
        """Micro-batches of pairs."""
        _, place = self.noised_rows(torch.arange(len(self.noise)))
        return packed(place, self.trajectory.rows_together)


class ForwardPreference(Collecting):
    """-log sigmoid(beta/2 [(e_ref - e)_w - (e_ref - e)_l]), e the squared error of the model's output at x_t.

    Diffusion-DPO (arXiv 2311.12908) and Flow-DPO (arXiv 2501.13918): the output is the noise, the velocity or whatever
    the model was trained to predict. A prompt's samples share time and noise, and the reference is the policy without
    its adapters, in the same call, so that the first loss is exactly log 2. Pairs come from a reward (`pair_rule`
    within each group of the policy's present samples, ties dropped) or are given as pictures.

    Departs from the papers: (1) A pair is compared at several times and noises in each update. (2) beta is constant
    unless by `beta_schedule`, as the second paper advises. (3) Errors are at least fp32 on both sides.
    (4) Ties count as half an accuracy. (5) No prompt is dropped.

    VRPO (LLaDA 1.5, arXiv 2505.19223): beta [(B - B_ref)_w - (B - B_ref)_l] within the sigmoid, B the
    masked evidence bound of an answer, estimated by `draws` shares of masks with one mask each, which policy and
    reference share. Departs from the paper: (1) winner and loser share them too, as their answers have equally many
    places. (2) The shares of masks are stratified, one from each of as many equal parts.
    """

    def __init__(self, settings: ForwardPreferenceSettings, pairs: PairSource | None = None) -> None:
        self.settings, self.pictures = settings, pairs
        self.name = settings.name
        self.needs = frozenset({"forward", "reference", *(["pairs"] if pairs else ["rollout", "reward"])})
        self._encoded = None if pairs is None else Encoded(pairs, 2)
        self._reference: dict[tuple[int, int, int], tuple[float, float]] = {}  # pair, turn, draw -> scores

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        if self.pictures is not None and self._encoded is not None:
            return self._given(policy, self.pictures, self._encoded, prompts, seed, step)
        s, here = self.settings, rollout_seed(seed, step)
        forward = fitting(policy, self.name)
        trajectory, scores = yield from sample_and_score(policy, prompts, reward, s.group, here, self.name)
        pairs = PAIR_RULES[s.pair_rule](scores, trajectory.group.cpu(), s.min_gap)
        everyone, _, _ = over_ranks(scores, trajectory.group)
        seeds = sibling_seeds(trajectory, pairs[:, 0].tolist(), -1)
        return PairExperience(
            trajectory=without_steps(trajectory),
            scores=scores,
            pairs=pairs,
            log=reward_log(everyone),
            clean=forward.clean(trajectory),
            times=stratified_times(here, s.draws, s.times),
            noise=torch.tensor(seeds, dtype=torch.long),
        )

    def _given(
        self, policy: Policy, pictures: PairSource, encoded: Encoded, prompts: Sequence[Prompt], seed: int, step: int
    ) -> Experience:
        """The pictures of these prompts' pairs; those of equal latents prefer nothing and are dropped."""
        s = self.settings
        turn = step if s.cycle is None else step % s.cycle
        here = rollout_seed(seed, turn)
        clean = encoded(fitting(policy, self.name), [prompt.uid for prompt in prompts])  # (P,2,*L)
        differ = [i for i, (winner, loser) in enumerate(clean) if not torch.equal(winner, loser)]
        rows = tuple(prompt for prompt in prompts for _ in range(2))
        seeds = [sample_seed(here, prompt.uid, -1) for prompt in prompts]
        pairs = torch.arange(len(rows)).reshape(-1, 2)[differ]
        missed = all_sum(torch.tensor([len(prompts) - len(differ)])).item()
        return PairExperience(
            trajectory=given_rows(rows, [seed for seed in seeds for _ in range(2)], pictures.rows_together),
            scores=None,
            pairs=pairs,
            log={"pairs/equal": float(missed)},
            clean=clean.flatten(0, 1),
            times=stratified_times(here, s.draws, s.times),
            noise=torch.tensor([seeds[i] for i in differ], dtype=torch.long),
            keys=None if s.cycle is None else tuple((prompts[i].uid, turn) for i in differ),
        )

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        assert isinstance(experience, PairExperience)
        packs = experience.packs()
        draws: list[Sequence[int]] = [[draw] for draw in range(self.settings.draws)]
        if self.settings.together:
            draws = [range(self.settings.draws)]
        counts = [float(len(pack) * len(draws)) for pack in packs]
        for mine, total in deal(packs, counts, self.settings.updates_per_rollout, experience.trajectory):
            units = [(pack, drawn) for pack in mine for drawn in draws]
            yield from emit(policy, units, partial(self._loss, policy, experience, total))

    def _loss(self, policy: Policy, experience: PairExperience, total: float, unit: Unit) -> Loss:
        s = self.settings
        pack, draws = unit
        parts = [self._compared(policy, experience, pack, draw) for draw in draws]
        chosen, rejected = _mean([lead for lead, _, _ in parts])  # (P,)
        score, count = _mean([score for _, score, _ in parts]), parts[0][2]  # (2,P)
        loss = dpo_loss("sigmoid", chosen, rejected, s.beta)
        if s.sft_weight:
            loss = loss - s.sft_weight * score[0] / count
        log = {
            "rewards/chosen": s.beta * chosen,
            "rewards/rejected": s.beta * rejected,
            "rewards/accuracies": (1 + (chosen - rejected).sign()) / 2,
            "rewards/margins": s.beta * (chosen - rejected),
            "error/chosen": -score[0] / count,
            "error/rejected": -score[1] / count,
            "loss": loss,
        }
        return Loss(loss.sum() / total, sums(log, torch.ones_like(loss, dtype=torch.bool)))

    def _compared(
        self, policy: Policy, experience: PairExperience, pack: Tensor, draw: int
    ) -> tuple[Tensor, Tensor, int]:
        """Of winners and losers (2,P): how much likelier they are than to the reference, and their scores; and how many
        latent dims a score is the sum of."""
        s = self.settings
        score, reference, fitted, share = self._scores(policy, experience, pack, draw)
        half, count = 1.0 if fitted.likelihood else 0.5, int(fitted.count)
        scale = half / (count if s.reduction == "mean" else 1) * (share if s.beta_schedule == "time" else 1.0)
        return scale * (score - reference), score, count

    def _scores(
        self, policy: Policy, experience: PairExperience, pack: Tensor, draw: int
    ) -> tuple[Tensor, Tensor, Steps, float]:
        """Scores of winners and losers (2,P) under the policy and under the reference, how they were found, and eps's
        share."""
        distinct, place = experience.noised_rows(pack)
        rows, noises = distinct.T.tolist()
        prompts = [experience.trajectory.prompts[row] for row in rows]
        seeds = [sample_seed(noise, draw, -1) for noise in noises]
        keys = [] if experience.keys is None else [(*experience.keys[i], draw) for i in pack.tolist()]
        known = bool(keys) and all(key in self._reference for key in keys)
        at = experience.times[draw]
        fitted = (
            fitting(policy, self.name)
            .fit(prompts, experience.clean[rows], at, seeds, None if known else "reference")
            .together()
        )
        place = place.to(fitted.score.device)
        score = fitted.score[:, 0][place].T  # (2,P)
        if known:
            reference = torch.tensor([self._reference[key] for key in keys], dtype=score.dtype, device=score.device).T
        else:
            assert fitted.versus_score is not None
            reference = fitted.versus_score[:, 0][place].T
            self._reference.update(zip(keys, reference.T.tolist(), strict=False))
        return score, reference, fitted, shares(fitted, at)[1]


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).mean(0)
