"""Preferences between recorded samples: D3PO step by step, DPO on whole sequences; one class."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genalign.method.common import Collecting, check_noise, over_ranks, reward_log, rollout_seed, sample_and_score, sums
from genalign.method.guide import Guide
from genalign.method.losses import PAIR_RULES, PairRule
from genalign.method.pairs import LabelledPairs, read_given
from genalign.method.preference_losses import AVERAGED, WITH_DOUBT, WITHOUT_REFERENCE, PreferenceLoss, dpo_loss
from genalign.method.settings import MethodSettings, PairSource
from genalign.method.updates import deal, emit, packed
from genalign.types import (
    Experience,
    Loss,
    Method,
    Policy,
    Prompt,
    Reward,
    Scores,
    Scoring,
    Steps,
    Trajectory,
    UsageError,
)

Unit = tuple[Tensor, list[int]]  # pairs (P,2), steps


class PreferenceSettings(MethodSettings):
    """D3PO and DPO: where pairs come from, and the loss that they enter."""

    learns_from: ClassVar = frozenset({"text"})
    presets: ClassVar = {
        "d3po": {"group": 4, "loss": "sigmoid", "beta": 0.1},
        "dpo": {"group": 4, "loss": "sigmoid", "beta": 0.1},
        "simpo": {"group": 4, "loss": "simpo", "beta": 2.0, "gamma": 1.0},
        "orpo": {"group": 4, "loss": "orpo", "beta": 0.1},
        "rpo": {"group": 4, "loss": "sigmoid", "beta": 0.1, "sft_weight": 0.1},
        "dno": {"group": 4, "loss": "sigmoid", "beta": 0.1, "soft_labels": 0.1, "pair_rule": "all"},
        "selm": {"group": 4, "loss": "sigmoid", "beta": 0.1, "optimism": 1e-3},
        "tgdpo": {"group": 4, "loss": "sigmoid", "beta": 0.1, "guidance": 0.5},
    }
    folders: ClassVar = {"trajectories": (), "guide": ()}

    loss: PreferenceLoss = "sigmoid"
    """The preference loss (see method/preference_losses.py)."""
    beta: float = Field(0.1, gt=0)
    """Inverse temperature of the preference, per nat of the summed log-ratio (ipo, simpo, orpo: of the mean one)."""
    gamma: float = 0.0
    """Margin of simpo."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """How probably a label is wrong (cDPO; losses robust and exo, which needs one)."""
    soft_labels: float | None = Field(None, gt=0)
    """By how many units of reward the winner must lead for its label to be sigmoid(1) and not 1 (Direct Nash
    Optimization); null: labels are 1."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the winner's own negative log-likelihood, a mean over tokens or latent dims (RPO)."""
    optimism: float = 0.0
    """Weight, in units of beta, of the log-ratio of both samples: above 0 away from what was drawn before (SELM, VPO
    online), below 0 towards it (VPO offline)."""
    guide: str | None = None
    """`adapter/` of an earlier run, such as one of DPO, whose log-ratio to the base says how much each step counts."""
    guidance: float = Field(0.0, ge=0)
    """How much more a step of the winner counts, and less one of the loser, for each unit of beta times that log-ratio
    (TGDPO)."""
    pair_rule: PairRule = "best_worst"
    """Pairs made of a scored group: its best and worst sample, every two, or every two of which one is at least as good
    by every weighted aspect of the reward."""
    min_gap: float = Field(0.0, ge=0)
    """Least difference of reward between winner and loser."""
    objective: str | None = None
    """Aspect of the reward that makes the pairs, the others being their margin (MODPO); null: its total makes them."""
    pairs: str | None = None
    """A .jsonl of labelled pairs, {prompt, chosen_seed, rejected_seed, model, sampler} a line; null: by reward."""
    trajectories: str | None = None
    """A folder of stored trajectories to read labelled pairs from; null: they are drawn again from their seeds."""

    @model_validator(mode="after")
    def _has_pairs(self) -> Self:
        if self.trajectories is not None and self.pairs is None:
            raise UsageError("method.trajectories holds the samples of labelled pairs; name those in method.pairs")
        if self.pairs is None:
            self.require_siblings()
        if self.objective is not None and (self.loss != "sigmoid" or self.pairs is not None):
            raise UsageError("method.objective is a margin of loss sigmoid, on pairs by reward; drop it, or the others")
        return self

    @model_validator(mode="after")
    def _loss_takes_them(self) -> Self:
        doubting = self.label_smoothing > 0 or self.soft_labels is not None
        if doubting and self.loss not in WITH_DOUBT:
            raise UsageError(
                f"method.loss {self.loss} takes no label_smoothing or soft_labels; drop them, or take one of "
                f"{', '.join(sorted(WITH_DOUBT))}"
            )
        if self.loss == "exo" and not doubting:
            raise UsageError("method.loss exo needs method.label_smoothing above 0, such as 0.001")
        if self.soft_labels is not None and (self.label_smoothing or self.pairs is not None or self.objective):
            raise UsageError("method.soft_labels are made of rewards; drop label_smoothing, pairs and objective")
        if self.optimism and self.loss in WITHOUT_REFERENCE:
            raise UsageError(f"method.optimism needs a reference, which loss {self.loss} has none of; drop one")
        return self

    def build(self, folder: Path) -> Method:
        self._check_guide()
        return Preference(self, folder)

    def _check_guide(self) -> None:
        if (self.guide is None) != (self.guidance == 0):
            raise UsageError(
                f"method {self.name} weighs steps by another adapter where both are set: method.guide, the adapter/ "
                f"of a finished run such as one of dpo, and method.guidance"
            )
        if self.guidance and self.loss in WITHOUT_REFERENCE:
            raise UsageError(f"method.guidance needs a reference, which loss {self.loss} has none of; drop one")

    def build_on(self, pairs: PairSource, folder: Path = Path()) -> Method:
        if pairs.kind not in self.learns_from:
            return super().build_on(pairs, folder)
        self._check_guide()
        made = {"pairs": self.pairs, "objective": self.objective, "soft_labels": self.soft_labels}
        name = next((name for name, value in made.items() if value is not None), None)
        if name is not None:
            raise UsageError(f"method.{name} is for pairs of own samples, but data.prompts holds given ones; drop it")
        return Preference(self, folder, pairs)


@dataclass(frozen=True)
class Objectives(Experience):
    """others (B,): weighted sum of the aspects that made no pairs; share: the weight of the one that did."""

    others: Tensor | None = None
    share: float = 1.0


class Preference(Collecting):
    """The DPO family on pairs of recorded samples of one prompt: z = beta * [(theta_w - ref_w) - (theta_l - ref_l)].

    One example is what one replay yields of a pair: a denoising step (D3PO, arXiv 2311.13231, eq. 14), or all tokens of
    a completion (DPO, arXiv 2305.18290, eq. 7). Its score is the SUM of log-densities over latent dims and steps of the
    example, so beta is per nat of the summed log-ratio. Pairs come from a reward (`pair_rule` within each group, ties
    dropped), from a labelled file, whose samples are drawn again from their seeds under the reference weights, or they
    are given as texts (data.prompts), as in the paper.

    objective: pairs by one aspect of a reward whose weights w add up to 1, -log s((z - sum_others w_k (r_k,w - r_k,l))
    / w_objective): MODPO (arXiv 2310.03708, eq. 7), whose optimum is that of the weighted sum.

    Labels that may be wrong: cDPO and soft labels by the reward's lead (Direct Nash Optimization, arXiv 2404.03715).
    sft_weight: the winner's own likelihood beside it (RPO, arXiv 2405.16436). optimism: a weight a on both
    samples' log-ratios, + a beta l (SELM, arXiv 2405.19332; VPO, arXiv 2405.19320).

    guide: another policy g, in its log-ratio to the base; step t of the winner counts 1 + guidance beta g_t, of the
    loser 1 - guidance beta g_t (TGDPO, arXiv 2506.14574).

    Departs from SELM and VPO: what is moved away from are the samples of the pair, which the policy drew before this
    update, and no further ones of the reference.

    Departs from D3PO: (1) Its code averages the log-density over the D latent dims and takes beta 0.1; that is
    beta 0.1 / D here, so small that the sigmoid never bends; 0.1 per nat lets it saturate as DPO's does. (2) Nothing
    clamps the log-ratios. (3) Samples of a pair start from noises of their own, unless policy.sampler.shared_start.
    (4) The reference is the policy without its adapters, in the same batch layout, so that the first loss is exactly
    log 2.
    """

    def __init__(self, settings: PreferenceSettings, folder: Path = Path(), given: PairSource | None = None) -> None:
        self.settings, self.given = settings, given
        self.name = settings.name
        stored = None if settings.trajectories is None else folder / settings.trajectories
        self.labelled = None if settings.pairs is None else LabelledPairs(folder / settings.pairs, stored)
        self.guide = None if settings.guide is None else Guide(folder / settings.guide)
        self.needs = frozenset(
            {
                "rollout",
                "pairs" if self.labelled or given is not None else "reward",
                *([] if settings.loss in WITHOUT_REFERENCE else ["reference"]),
            }
        )

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        if self.labelled is not None:
            trajectory = self.labelled.draw(policy, prompts, step)
            check_noise(trajectory, self.name)
            return _of_neighbours(trajectory)
        if self.given is not None:
            return _of_neighbours(read_given(policy, self.given, prompts))
        s = self.settings
        trajectory, scores = yield from sample_and_score(
            policy, prompts, reward, s.group, rollout_seed(seed, step), self.name
        )
        check_noise(trajectory, self.name)
        compared, others, share = (scores, None, 1.0) if s.objective is None else by_objective(scores, s.objective)
        pairs = PAIR_RULES[s.pair_rule](compared, trajectory.group.cpu(), s.min_gap)
        log = reward_log(over_ranks(scores, trajectory.group)[0])
        return Objectives(trajectory, scores, pairs=pairs, log=log, others=others, share=share)

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        trajectory = experience.trajectory
        assert experience.pairs is not None
        packs = [experience.pairs[pack] for pack in packed(experience.pairs, trajectory.rows_together)]
        examples = [[(pack, steps) for _, steps in trajectory.units([0])] for pack in packs]
        counts = [float(sum(_complete(trajectory, unit).sum() for unit in units)) for units in examples]
        for mine, total in deal(examples, counts, self.settings.updates_per_rollout, trajectory):
            units = [unit for pack in mine for unit in pack if _complete(trajectory, unit).any()]
            yield from emit(policy, units, partial(self._loss, policy, experience, total))

    def _loss(self, policy: Policy, experience: Experience, total: float, unit: Unit) -> Loss:
        pairs, steps = unit
        s, trajectory = self.settings, experience.trajectory
        rows, place = torch.unique(pairs, return_inverse=True)  # place (P,2): where in `rows` a pair's samples are
        versus: Literal["reference"] | None = None if s.loss in WITHOUT_REFERENCE else "reference"
        replayed = policy.replay(trajectory, rows.tolist(), steps, versus=versus)
        if s.loss == "orpo" and not (isinstance(replayed.count, int) and replayed.count == 1):
            raise UsageError("method.loss orpo needs probabilities, and steps of latents have densities; take simpo")
        ratio = replayed.score if replayed.versus_score is None else replayed.score - replayed.versus_score  # (R,S)
        size = (replayed.mask * replayed.count).sum(1).clamp(min=1)  # (R,) tokens, or latent dims
        weight = self._step_weight(policy, trajectory, rows.tolist(), steps, replayed)
        place = place.to(ratio.device)
        if weight is None:
            chosen, rejected = _total(ratio, replayed.mask, size, s.loss)[place].unbind(1)  # (P,)
        else:
            chosen = _total(ratio * weight, replayed.mask, size, s.loss)[place[:, 0]]
            rejected = _total(ratio * (2 - weight), replayed.mask, size, s.loss)[place[:, 1]]
        counts = _complete(trajectory, unit).to(ratio.device)
        if isinstance(experience, Objectives) and experience.others is not None:
            won, lost = (experience.others[pairs] / s.beta).to(ratio.device).unbind(1)
            loss = dpo_loss(s.loss, chosen - won, rejected - lost, s.beta / experience.share)
        else:
            loss = dpo_loss(s.loss, chosen, rejected, s.beta, s.gamma, self._wrong(experience, pairs, ratio.device))
        if s.optimism:
            loss = loss + s.optimism * s.beta * 0.5 * (chosen + rejected)
        if s.sft_weight:
            likelihood = torch.where(replayed.mask, replayed.score, 0.0).sum(1) / size  # (R,)
            loss = loss - s.sft_weight * likelihood[place[:, 0]]
        log = {
            "rewards/chosen": s.beta * chosen,
            "rewards/rejected": s.beta * rejected,
            "rewards/accuracies": chosen > rejected,
            "rewards/margins": s.beta * (chosen - rejected),
            "loss": loss,
        }
        return Loss(torch.where(counts, loss, 0.0).sum() / total, sums(log, counts))

    def _step_weight(
        self, policy: Policy, trajectory: Trajectory, rows: list[int], steps: list[int], replayed: Steps
    ) -> Tensor | None:
        """What each step of a winner counts (R,S); of a loser it is 2 minus that. None: 1."""
        if self.guide is None or replayed.versus_score is None:
            return None
        lead = self.guide.score(policy, trajectory, rows, steps) - replayed.versus_score
        return 1 + self.settings.guidance * self.settings.beta * lead

    def _wrong(self, experience: Experience, pairs: Tensor, device: torch.device) -> Tensor | float:
        """How probably the label of each of pairs (P,2) is wrong."""
        s = self.settings
        if s.soft_labels is None or experience.scores is None:
            return s.label_smoothing
        won, lost = experience.scores.total[pairs].unbind(1)
        return torch.sigmoid((lost - won) / s.soft_labels).to(device)


def by_objective(scores: Scores, name: str) -> tuple[Scores, Tensor, float]:
    """Scores whose total is one aspect, where all that have weight can be read; the weighted sum of the others, (B,),
    the weights adding up to 1; and the weight of that aspect.

    Raises:
        UsageError: the reward has no such aspect, or it counts for nothing in it.
    """
    weights = scores.weights / scores.weights.abs().sum()
    weighted = [aspect for aspect, weight in zip(scores.names, weights.tolist(), strict=True) if weight > 0]
    if name not in weighted:
        raise UsageError(f"method.objective is {name!r}, but the reward's weighted aspects are {', '.join(weighted)}")
    k = scores.names.index(name)
    whole = scores.total_valid & scores.valid[:, weights != 0].all(1)
    one = torch.zeros_like(weights).index_fill(0, torch.tensor(k), 1.0)
    only = replace(scores, total=torch.where(whole, scores.values[:, k], 0.0), total_valid=whole)
    return only, scores.values @ (weights * (1 - one)), float(weights[k])


def _total(score: Tensor, mask: Tensor, size: Tensor, loss: PreferenceLoss) -> Tensor:
    """(R,): of scores (R,S) the sum over the steps in mask, or the mean, by what the loss reads."""
    return torch.where(mask, score, 0.0).sum(1) / (size if loss in AVERAGED else 1)


def _complete(trajectory: Trajectory, unit: Unit) -> Tensor:
    """(P,) bool: both samples of the pair have a recorded step in the example."""
    pairs, steps = unit
    return trajectory.mask.cpu()[:, steps].any(1)[pairs].all(1)


def _of_neighbours(trajectory: Trajectory) -> Experience:
    """Every two rows that stand side by side are a pair, the preferred one first."""
    pairs = torch.arange(len(trajectory.prompts)).reshape(-1, 2)
    return Experience(trajectory, None, pairs=pairs)
