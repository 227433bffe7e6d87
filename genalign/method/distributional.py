"""DRAGON: own samples are dealt into a set to move towards and a set to move away from, by the forward process."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genalign.fronts import spans, tied
from genalign.method.common import over_ranks, reward_log, rollout_seed, sample_and_score, sums, to_cpu
from genalign.method.forward import ForwardSettings, Reduction, fitting, stratified_times, without_steps
from genalign.method.forward_preference import ForwardPreference, ForwardPreferenceSettings, PairExperience, Unit
from genalign.method.preference_losses import kto_loss
from genalign.ranks import all_sum
from genalign.types import (
    Experience,
    Loss,
    Media,
    Method,
    Policy,
    Prompt,
    Reward,
    Scores,
    Scoring,
    UsageError,
    sample_seed,
)


class DistributionalSettings(ForwardSettings):
    """DRAGON: what the two sets are, and the loss that tells them apart."""

    presets: ClassVar = {"dragon": {"group": 2}}

    loss: Literal["dpo", "kto"] = "dpo"
    """Compare one of each set with the other, or each sample with the mean of all."""
    pairing: Literal["prompt", "none"] = "prompt"
    """Whether the two samples that share time and noise answer one prompt, or any two."""
    positives: Literal["samples", "pictures"] = "samples"
    """What to move towards: the better half of each prompt's samples, or the picture that a row of data.prompts brings
    under `image`; then all samples are what to move away from."""
    label_temperature: float | None = Field(None, gt=0)
    """Prefer the better of a pair with probability sigmoid(difference of rewards / this) only; null: always."""
    beta: float = Field(2000.0, gt=0)
    """Inverse temperature, per half a squared error of `reduction` (kto: per a squared error)."""
    reduction: Reduction = "mean"
    """What beta is per: the error summed over latent dims, or their mean."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the positive's own mean squared error."""

    @model_validator(mode="after")
    def _has_two_sets(self) -> Self:
        if self.group == 1 and self.positives == "samples":
            raise UsageError(f"method {self.name} splits siblings into two sets, so method.group must be at least 2")
        if self.pairing == "none" and self.label_temperature is not None:
            raise UsageError("method.label_temperature prefers within a prompt; set method.pairing=prompt or drop it")
        return self

    def build(self, folder: Path) -> Method:
        return Dragon(self)

    @property
    def pictures_are_answers(self) -> bool:
        return self.positives == "pictures"


class Dragon(ForwardPreference):
    """Towards D+, away from D- (DRAGON, arXiv 2504.15217), both from the policy's present samples.

    The better half of each prompt's samples, by the reward, is D+ and the rest D-; ties are dropped. What the reward
    looks at is its own matter: one sample (instance), one sample against exemplars, or the whole set, where a sample's
    score is its credit (reward/sets.py). "dpo": Diffusion-DPO's loss on pairs of one of each. "kto": w (1 - sigmoid(+-
    beta (g - z))), g = e_ref - e, z the mean of g over both sets at that time, at least 0 (Diffusion-KTO, arXiv
    2404.04465). positives "pictures" with label_temperature and sft_weight is RPO (arXiv 2407.12164): given pictures of
    a subject against own samples, with Bradley-Terry labels.

    Departs from the papers: (1) DRAGON's own assignment and settings are not public; see reward/sets.py. (2) z is
    taken over all ranks before the first update, with one more forward pass, so that micro-batches change nothing. (3)
    The anchor (sft_weight) is the positive as it was labelled, where RPO's is always the picture. (4) See
    ForwardPreference.
    """

    def __init__(self, settings: DistributionalSettings) -> None:
        own = ForwardPreferenceSettings(
            name="diffusion-dpo",
            group=max(2, settings.group),
            updates_per_rollout=settings.updates_per_rollout,
            beta=settings.beta,
            reduction=settings.reduction,
            sft_weight=settings.sft_weight,
            draws=settings.draws,
            times=settings.times,
            min_gap=0.0,
            cycle=None,
        )
        super().__init__(own)
        self.sets = settings
        self.name = settings.name
        self._shift: list[float] = []  # z of each draw

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        s, here = self.sets, rollout_seed(seed, step)
        forward = fitting(policy, self.name)
        bare = [replace(prompt, media=None) for prompt in prompts] if s.positives == "pictures" else prompts
        trajectory, scores = yield from sample_and_score(policy, bare, reward, s.group, here, self.name)
        clean, log = forward.clean(trajectory), reward_log(over_ranks(scores, trajectory.group)[0])
        if s.positives == "samples":
            pairs = halves(scores, trajectory.group.cpu())
            total = scores.total
        else:
            shown = _pictures(prompts)
            assert reward is not None
            with torch.no_grad():
                given = to_cpu(reward(bare, shown, torch.tensor([prompt.uid for prompt in bare])))
            rows = len(trajectory.prompts)
            pairs = torch.stack([rows + torch.arange(rows) // s.group, torch.arange(rows)], 1)
            readable = torch.cat([scores.total_valid, given.total_valid])
            pairs, total = pairs[readable[pairs].all(1)], torch.cat([scores.total, given.total])
            clean = torch.cat([clean, forward.encode(shown).to(clean)])
            log["reward/pictures"] = _mean(given.total[given.total_valid])
            seeds = tuple(sample_seed(here, prompt.uid, -3) for prompt in bare)
            trajectory = replace(
                trajectory,
                prompts=(*trajectory.prompts, *bare),
                group=torch.cat([trajectory.group.cpu(), torch.tensor([prompt.uid for prompt in bare])]),
                logp=torch.zeros(rows + len(bare), 0),
                mask=torch.zeros(rows + len(bare), 0, dtype=torch.bool),
                seeds=(*trajectory.seeds, *seeds),
            )
        noise = [sample_seed(trajectory.seeds[a], trajectory.seeds[b], -1) for a, b in pairs.tolist()]
        if s.label_temperature is not None:
            pairs = _labelled(pairs, total, noise, s.label_temperature)
        if s.pairing == "none" and len(pairs):
            order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(here % 2**63))
            pairs = torch.stack([pairs[:, 0], pairs[order, 1]], 1)
        return PairExperience(
            trajectory=without_steps(trajectory),
            scores=scores,
            pairs=pairs,
            log=log,
            clean=clean,
            times=stratified_times(here, s.draws, s.times),
            noise=torch.tensor(noise, dtype=torch.long),
            keys=tuple((i, step) for i in range(len(pairs))) if s.loss == "kto" else None,
        )

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        assert isinstance(experience, PairExperience)
        if self.sets.loss == "kto":
            self._shift = self._means(policy, experience)
        yield from super().losses(policy, experience)

    @torch.no_grad()
    def _means(self, policy: Policy, experience: PairExperience) -> list[float]:
        """The mean of g over both sets and all ranks at each draw, at least 0; the reference's errors are kept."""
        self._reference.clear()
        means = []
        for draw in range(self.sets.draws):
            sum_and_count = torch.zeros(2, dtype=torch.float64)
            for pack in experience.packs():
                gained = self._gained(policy, experience, pack, draw)[0]
                sum_and_count += torch.tensor([gained.double().sum().item(), gained.numel()], dtype=torch.float64)
            total, count = all_sum(sum_and_count).tolist()
            means.append(max(0.0, total / max(count, 1.0)))
        return means

    def _gained(self, policy: Policy, experience: PairExperience, pack: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """g (2,P) = e_ref - e of both sets, in the units that beta is per; and the positives' mean squared error."""
        score, reference, fitted, _ = self._scores(policy, experience, pack, draw)
        count = int(fitted.count)
        return (score - reference) / (count if self.sets.reduction == "mean" else 1), -score[0] / count

    def _loss(self, policy: Policy, experience: PairExperience, total: float, unit: Unit) -> Loss:
        if self.sets.loss == "dpo":
            return super()._loss(policy, experience, total, unit)
        pack, (draw,) = unit
        s, shift = self.sets, self._shift[draw]
        gained, error = self._gained(policy, experience, pack, draw)
        positive, negative = gained
        loss = (kto_loss(positive, shift, s.beta, True) + kto_loss(negative, shift, s.beta, False)) / 2
        loss = loss + s.sft_weight * error
        log = {
            "rewards/chosen": s.beta * positive,
            "rewards/rejected": s.beta * negative,
            "rewards/accuracies": (1 + (positive - negative).sign()) / 2,
            "rewards/margins": s.beta * (positive - negative),
            "kto/z": torch.full_like(positive, s.beta * shift),
            "loss": loss,
        }
        return Loss(loss.sum() / total, sums(log, torch.ones_like(loss, dtype=torch.bool)))


def halves(scores: Scores, group: Tensor) -> Tensor:
    """(P,2) rows: the best of each group with its worst, the next best with the next worst, ...; ties are dropped."""
    pairs = [torch.empty(0, 2, dtype=torch.long)]
    total = scores.total.double()
    for name in torch.unique(group):
        rows = torch.nonzero((group == name) & scores.total_valid).flatten()
        rows = rows[total[rows].argsort(descending=True, stable=True)]
        half = len(rows) // 2
        pairs.append(torch.stack([rows[:half], rows.flip(0)[:half]], 1))
    joined = torch.cat(pairs)
    if not len(joined):
        return joined
    both, span = total[joined], spans(total, scores.total_valid, group)[joined[:, 0]]
    return joined[~tied(both[:, 0] - both[:, 1], both.abs().amax(1), span)]


def _labelled(pairs: Tensor, total: Tensor, noise: Sequence[int], temperature: float) -> Tensor:
    """Each pair in the order a Bradley-Terry judge of these rewards would give it, by a draw of the pair's own."""
    both = total.double()[pairs]  # (P,2)
    agrees = torch.sigmoid((both[:, 0] - both[:, 1]) / temperature)
    drawn = torch.tensor([sample_seed(seed, -5, 0) / 2**63 for seed in noise], dtype=torch.float64)
    return torch.where((drawn < agrees)[:, None], pairs, pairs.flip(1))


def _pictures(prompts: Sequence[Prompt]) -> Media:
    media = [prompt.media for prompt in prompts if prompt.media is not None]
    if len(media) < len(prompts):
        bare = next(prompt for prompt in prompts if prompt.media is None)
        raise UsageError(f"prompt {bare.text!r} brings no picture to move towards; give its row an 'image'")
    if any(one.rows != 1 for one in media):
        raise UsageError("a prompt brings two pictures, where method dragon moves towards one; leave one out")
    return Media.cat(media)


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else 0.0
