"""Policy gradients on recorded steps: DDPO, Flow-GRPO, the GRPO family and RLOO are settings of one class."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from genalign.method.common import (
    Collecting,
    check_noise,
    kl_of,
    over_ranks,
    reward_log,
    rollout_seed,
    sample_and_score,
    sums,
)
from genalign.method.groups import budget_lead, consistency_blend, difficulty_scale
from genalign.method.losses import AdvantageRule, Baseline, Std, advantages
from genalign.method.route import Advantages, Route, advantages_by_medium
from genalign.method.settings import MethodSettings
from genalign.method.surrogates import Surrogate, cispo, over_steps, ppo_clip, sapo
from genalign.method.updates import deal, emit, row_units
from genalign.ranks import gather
from genalign.types import Experience, Loss, Method, Policy, Prompt, Reward, Scores, Scoring, UsageError

Unit = tuple[list[int], list[int]]  # rows, steps


class GradientSettings(MethodSettings):
    """DDPO, Flow-GRPO, GRPO and its kin: what a score is compared with, divided by, and how far an update may go."""

    presets: ClassVar = {
        "ddpo": {"group": 4, "baseline": "batch", "std": "batch", "advantage_clip": 5.0, "clip_nats": (1.6, 1.6)},
        "flow-grpo": {"group": 16, "std": "batch", "advantage_clip": 5.0, "clip_nats": (1.0, 1.0)},
        "grpo": {"group": 8, "clip_nats": (0.22, 0.18)},
        "dr-grpo": {"group": 8, "std": "none", "loss_per": "row", "clip_nats": (0.22, 0.18)},
        "dapo": {"group": 16, "clip_nats": (0.22, 0.25)},
        "gspo": {"group": 8, "ratio": "row", "loss_per": "row_mean", "clip_nats": (3e-4, 4e-4)},
        "cispo": {"group": 16, "surrogate": "cispo", "clip_nats": (20.0, 1.61)},
        "sapo": {"group": 8, "surrogate": "sapo", "loss_per": "row_mean"},
        "reinforce++": {"group": 1, "baseline": "batch", "std": "batch", "clip_nats": (0.22, 0.18)},
        "rloo": {"group": 4, "baseline": "leave_one_out", "std": "none", "loss_per": "row", "clip_nats": (0.22, 0.18)},
        "raft": {"group": 8, "advantage": "best", "loss_per": "row_mean", "clip_nats": (0.22, 0.18)},
    }

    advantage: AdvantageRule = "sum_then_normalise"
    """Normalise the reward's total, or each of its aspects before they are summed (GDPO); or mix task and constraints
    by the constraints' multipliers; or go by Pareto fronts among siblings, without weights; or learn from the best
    sample of each prompt alone (RAFT)."""
    dead_groups: Literal["skip", "global"] = "skip"
    """What a group whose samples all score alike teaches: nothing, or how it did among the groups (COPO's blend)."""
    difficulty: Literal["none", "hard", "easy"] = "none"
    """Which prompts' advantages count more, by their mean score and their spread (GRPO-S); none: all the same."""
    budget: tuple[PositiveFloat, NonNegativeFloat] | None = None
    """HBPO: [longest, height] of the reward `budget`, so that siblings are also compared with the worth of their
    prompt's fact `budget`; null: they are not."""
    std: Std = "group"
    """Divide a centred score by the standard deviation of its group, of the whole batch, or not at all."""
    baseline: Baseline = "group"
    """What a score is compared with: the mean of its group, of the batch, or of its siblings."""
    advantage_clip: float | None = Field(None, gt=0)
    """Bound on |advantage|; null: none."""
    clip_nats: tuple[float, float] = (0.2, 0.2)
    """How far, down and up, a step's summed log-ratio may move before its gradient stops, in nats."""
    surrogate: Surrogate = "clip"
    """Far from the old policy: PPO's clip; a bounded weight without gradient (CISPO); a smooth gate (SAPO)."""
    temperatures: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.05)
    """How steeply SAPO's gate closes, for advantages above 0 and below."""
    ratio: Literal["step", "row", "row_sum"] = "step"
    """What is compared with the old policy: a step, the mean over the steps of its row (GSPO), or their sum, so that
    the row is one action (RLOO as TRL has it, with loss_per row_mean)."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the reference per step, in nats."""
    route: Route = "modality"
    """Where a policy draws several media at once, such as video with sound: each reward's advantage reaches only those
    that it reads (OmniNFT), or the sum of all reaches each."""
    loss_per: Literal["step", "row", "row_mean"] = "step"
    """What the loss is a mean over: steps of rows that count (DAPO), or rows, over whose steps is summed (RLOO,
    Dr. GRPO) or a mean taken (GRPO's equation)."""

    @model_validator(mode="after")
    def _has_siblings(self) -> Self:
        if self.baseline != "batch":
            self.require_siblings()
        return self

    def build(self, folder: Path) -> Method:
        return PolicyGradient(self)


class PolicyGradient(Collecting):
    """Clipped policy gradient with an advantage per sample that all its steps share.

    DDPO (arXiv 2305.13301, eq. 6), Flow-GRPO (arXiv 2505.05470, eq. 4), GRPO (arXiv 2402.03300, eq. 3), Dr. GRPO (arXiv
    2503.20783), DAPO (arXiv 2503.14476), GSPO (arXiv 2507.18071), CISPO (arXiv 2506.13585), SAPO (arXiv 2511.20347),
    REINFORCE++ (arXiv 2501.03262), RLOO (arXiv 2402.14740), RAFT (arXiv 2304.06767): what tells them apart are the
    baseline, the std, what happens far from the old policy, and the mean that the loss is. P3O (arXiv 2310.00212) with
    its ratios clipped apart is RLOO: summed over all pairs, differences of rewards are leave-one-out advantages. With
    `budget`, HBPO ("Hierarchical Budget Policy Optimization").

    Departs from the papers: (1) The loss is divided by the steps (or rows) that count over all ranks, so that ranks,
    accumulation and dropped rows change nothing. (2) The clip range is in nats of the summed log-ratio. (3) The KL term
    is the closed form where the policy has one, else k3, over the rows that count. (4) Nothing moves when no group has
    spread (but see `dead_groups` and `budget`). (5) HBPO gives one question several budgets and normalises over all of
    its samples; here a budget is a fact of the prompt, so siblings share it, and are normalised among themselves.
    (6) Dr. GRPO divides by the longest completion allowed, which is a constant and left out. (7) DAPO draws further
    prompts in the place of groups without spread; here such groups are passed over. (8) REINFORCE++ subtracts the KL
    from the reward; here kl_beta adds it to the loss. (9) GRPO's loss is a mean over all steps of the batch here
    (`loss_per: row_mean` is its equation).
    """

    def __init__(self, settings: GradientSettings) -> None:
        self.settings = settings
        self.name = settings.name
        needs = {"rollout", "reward"}
        if settings.kl_beta > 0:
            needs.add("reference")
        if settings.advantage == "lagrangian":
            needs.add("constraints")
        self.needs = frozenset(needs)

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        s = self.settings
        trajectory, scores = yield from sample_and_score(
            policy, prompts, reward, s.group, rollout_seed(seed, step), self.name
        )
        check_noise(trajectory, self.name)
        if s.ratio != "step" and trajectory.steps_together < trajectory.logp.shape[1]:
            raise UsageError(
                f"method.ratio {s.ratio} needs all steps of a sample in one replay, and this policy replays "
                f"{trajectory.steps_together} of {trajectory.logp.shape[1]} at a time; set policy.sampler.window=1, "
                f"or method.ratio=step"
            )
        everyone, group, here = over_ranks(scores, trajectory.group)
        budgets = None if s.budget is None else gather(_budgets(trajectory.prompts))
        rule = partial(self._advantages, group=group, budgets=budgets)
        route = "sum" if s.advantage == "lagrangian" else s.route  # a constraint binds whatever is drawn
        advantage, counted, spread = advantages_by_medium(everyone, group, trajectory.about, reward, route, rule)
        return Experience(
            trajectory,
            scores,
            advantage=advantage[here],
            counted=counted[here],
            log={**reward_log(everyone), **spread},
        )

    def _advantages(self, everyone: Scores, group: Tensor, budgets: Tensor | None) -> Advantages:
        s = self.settings
        advantage, counted, spread = advantages(everyone, group, s.advantage, s.std, s.baseline)
        if s.difficulty != "none":
            advantage = advantage * difficulty_scale(everyone, group, s.difficulty)
        if s.dead_groups == "global":
            advantage, counted = consistency_blend(advantage, counted, everyone, group)
        if s.budget is not None and budgets is not None:
            lead = budget_lead(everyone, group, budgets, *s.budget)
            advantage, counted = advantage + lead, counted | (lead != 0)
        if s.advantage_clip is not None:
            advantage = advantage.clamp(-s.advantage_clip, s.advantage_clip)
        return advantage, counted, spread

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        units = row_units(experience, self.settings.loss_per != "step")
        for mine, total in deal(*units, self.settings.updates_per_rollout, experience.trajectory):
            cells = [unit for block in mine for unit in block]
            yield from emit(policy, cells, partial(self._loss, policy, experience, total))

    def _loss(self, policy: Policy, experience: Experience, total: float, unit: Unit) -> Loss:
        rows, steps = unit
        s, trajectory = self.settings, experience.trajectory
        assert experience.counted is not None
        replayed = policy.replay(trajectory, rows, steps, versus="reference" if s.kl_beta else None)
        device = replayed.score.device
        old = trajectory.logp[rows][:, steps].to(device)  # (R,S)
        advantage = experience.advantage_of(rows, steps).to(device)  # (R,1) or (R,S)
        counts = replayed.mask & experience.counted[rows].to(device)[:, None]
        loss, clipped = self._surrogate(replayed.score, old, replayed.mask, advantage)
        log = {"ratio/mean": (replayed.score - old).exp(), "clip_ratio/region_mean": clipped}
        if s.kl_beta:
            log["kl"] = kl_of(replayed)
            loss = loss + s.kl_beta * log["kl"]
        log["loss"] = loss
        summed = torch.where(counts, loss, 0.0).sum(1)
        if s.loss_per == "row_mean":
            summed = summed / trajectory.mask[rows].to(device).sum(1).clamp(min=1)
        return Loss(summed.sum() / total, sums(log, counts))

    def _surrogate(self, logp: Tensor, old: Tensor, mask: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each step (R,S), and where the old policy is too far away to be followed."""
        s = self.settings
        if s.ratio != "step":
            logp, old = over_steps(logp - old, mask, mean=s.ratio == "row"), torch.zeros_like(old)
        if s.surrogate == "cispo":
            return cispo(logp, old, advantage, s.clip_nats[1])
        if s.surrogate == "sapo":
            return sapo(logp, old, advantage, s.temperatures)
        return ppo_clip(logp, old, advantage, *s.clip_nats)


def _budgets(prompts: Sequence[Prompt]) -> Tensor:
    """(B,) the prompts' fact `budget`; NaN where there is none."""
    given = [prompt.facts.get("budget") for prompt in prompts]
    return torch.tensor([float(budget) if isinstance(budget, int | float) else math.nan for budget in given])
