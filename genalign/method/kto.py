"""KTO: samples that are good or bad each by itself, and no pairs."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from genalign.method.common import Collecting, check_noise, over_ranks, reward_log, rollout_seed, sample_and_score, sums
from genalign.method.losses import advantages
from genalign.method.pairs import read_given
from genalign.method.preference_losses import kto_loss
from genalign.method.settings import MethodSettings, PairSource
from genalign.method.updates import deal, emit, row_units
from genalign.types import Experience, Loss, Method, Policy, Prompt, Reward, Scoring, UsageError

Unit = tuple[list[int], list[int]]  # rows, steps


class KTOSettings(MethodSettings):
    """KTO and GPO: how sharply good samples are told from bad ones, and what each counts."""

    learns_from: ClassVar = frozenset({"text"})
    presets: ClassVar = {"kto": {"group": 4}, "gpo": {"group": 4, "loss": "square"}}

    loss: Literal["kto", "square"] = "kto"
    """KTO's, of samples that are good or bad; or the square of how far a log-ratio is from what its score asks for."""
    beta: float = Field(0.1, gt=0)
    """Inverse temperature, per nat of the summed log-ratio."""
    desirable_weight: float = Field(1.0, ge=0)
    """What a good sample counts."""
    undesirable_weight: float = Field(1.0, ge=0)
    """What a bad sample counts."""

    def build(self, folder: Path) -> Method:
        self.require_siblings()
        return KTO(self)

    def build_on(self, pairs: PairSource, folder: Path = Path()) -> Method:
        if self.loss == "square" and pairs.kind in self.learns_from:
            raise UsageError(f"method {self.name} learns from scores, and given pairs have none; take kto or dpo")
        return KTO(self, pairs) if pairs.kind in self.learns_from else super().build_on(pairs, folder)


class KTO(Collecting):
    """w (1 - sigmoid(+-beta (l - z))), l a sample's log-ratio policy - reference, z a point of reference (KTO, arXiv
    2402.01306, eq. 8).

    loss square: (l - (r - mean r of the group) / beta)^2, whose optimum is the base tilted by exp(r / beta): SPPO
    (arXiv 2405.00675) where r is the win rate among siblings, general preference optimization (GPO, arXiv
    2410.02197) where it is the mean score against them.

    One example is what one replay yields of a sample: a denoising step, or all tokens of a completion. A sample is good
    where it scores above the mean of its group, bad below it; one that is preferred in given pairs (data.prompts) is
    good, the other one bad.

    Departs from the paper: (1) z, a KL divergence of the policy from the reference, is the mean log-ratio of the
    micro-batch's samples, at least 0, which is that divergence for the policy's own samples; the paper takes it of
    answers to other prompts. (2) Good and bad are by the group, not by labels that somebody gave each sample.
    (3) SPPO and GPO take the policy of the round before for the base, and the mean over answers of theirs.
    """

    def __init__(self, settings: KTOSettings, given: PairSource | None = None) -> None:
        self.settings, self.given = settings, given
        self.name = settings.name
        self.needs = frozenset({"rollout", "reference", "reward" if given is None else "pairs"})

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        if self.given is not None:
            trajectory = read_given(policy, self.given, prompts)
            good = torch.tensor([1.0, -1.0]).repeat(len(prompts))
            counted = torch.ones(len(good), dtype=torch.bool)
            return Experience(trajectory, None, advantage=good, counted=counted)
        s = self.settings
        trajectory, scores = yield from sample_and_score(
            policy, prompts, reward, s.group, rollout_seed(seed, step), self.name
        )
        check_noise(trajectory, self.name)
        everyone, group, here = over_ranks(scores, trajectory.group)
        lead, counted, spread = advantages(everyone, group, std="none")
        counted = counted & (lead != 0)
        return Experience(
            trajectory,
            scores,
            advantage=(lead if s.loss == "square" else lead.sign())[here],
            counted=counted[here],
            log={**reward_log(everyone), **spread},
        )

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        blocks, _ = row_units(experience)
        counts = [float(sum(_examples(experience, unit).sum() for unit in units)) for units in blocks]
        for mine, total in deal(blocks, counts, self.settings.updates_per_rollout, experience.trajectory):
            units = [unit for block in mine for unit in block]
            yield from emit(policy, units, partial(self._loss, policy, experience, total))

    def _loss(self, policy: Policy, experience: Experience, total: float, unit: Unit) -> Loss:
        rows, steps = unit
        s = self.settings
        assert experience.advantage is not None
        replayed = policy.replay(experience.trajectory, rows, steps, versus="reference")
        assert replayed.versus_score is not None
        ratio = torch.where(replayed.mask, replayed.score - replayed.versus_score, 0.0).sum(1)  # (R,)
        counts = _examples(experience, unit).to(ratio.device)
        z = ratio.detach()[counts].mean().clamp(min=0)
        good = experience.advantage[rows].to(ratio.device) > 0
        if s.loss == "square":
            won = lost = (ratio - experience.advantage[rows].to(ratio.device) / s.beta).square()
        else:
            won, lost = (kto_loss(ratio, z, s.beta, desirable=desirable) for desirable in (True, False))
        loss = torch.where(good, s.desirable_weight * won, s.undesirable_weight * lost)
        log = sums({"loss": loss, "kto/z": (s.beta * z).expand_as(loss)}, counts)
        log |= sums({"rewards/chosen": s.beta * ratio}, counts & good)
        log |= sums({"rewards/rejected": s.beta * ratio}, counts & ~good)
        return Loss(torch.where(counts, loss, 0.0).sum() / total, log)


def _examples(experience: Experience, unit: Unit) -> Tensor:
    """(R,) bool: the rows of the unit that count and have a recorded step in it."""
    rows, steps = unit
    assert experience.counted is not None
    return experience.trajectory.mask.cpu()[rows][:, steps].any(1) & experience.counted[rows]
