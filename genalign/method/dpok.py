"""DPOK: a policy gradient with a learned value of x_t as its baseline, and the KL to the reference along the path."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
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
from genalign.method.settings import MethodSettings
from genalign.method.surrogates import ppo_clip
from genalign.method.updates import deal, emit, row_units
from genalign.method.value import Value
from genalign.ranks import gather
from genalign.types import Experience, Loss, Method, Policy, Prompt, Reward, Scoring

Unit = tuple[list[int], list[int]]  # rows, steps


class DPOKSettings(MethodSettings):
    """DPOK: what the reward counts against the KL, and how the value is learnt."""

    presets: ClassVar = {"dpok": {"group": 4, "reward_weight": 10.0, "kl_beta": 0.01}}

    reward_weight: float = Field(10.0, gt=0)
    """What a unit of reward above its baseline counts."""
    kl_beta: float = Field(0.01, ge=0)
    """Weight of the KL divergence from the reference per step, in nats."""
    clip_nats: tuple[float, float] = (1.0, 1.0)
    """How far, down and up, a step's summed log-ratio may move before its gradient stops, in nats."""
    value_steps: int = Field(5, ge=0)
    """Updates of the value network per rollout; 0: the baseline is the running mean of the rewards."""
    value_learning_rate: float = Field(1e-3, gt=0)
    """Of the value network's AdamW."""

    def build(self, folder: Path) -> Method:
        return DPOK(self)


class DPOK(Collecting):
    """DPOK (arXiv 2305.16381): E[-alpha (r - V(x_t)) log p(x' | x_t)] + beta sum_t KL(p(x' | x_t) || p_ref(x' | x_t)).

    The sum of the KLs of all steps bounds that of the images from above; `kl/path` is its mean over rows. r - V is each
    step's own advantage.

    Departs from the paper: (1) V's network is fitted to a rollout's rewards after they have been used, so that a
    baseline does not depend on the very action it is subtracted for. (2) V works in units of the rewards so far, reads
    hashed words for a text embedding and means of x_t for all of it, and learns from each rollout once, not from a
    buffer. (3) The KL is each step's own, in nats; the code has the unweighted squared difference of outputs. (4) The
    clip is PPO's, in nats of the summed log-ratio; the code's is two-sided, on the mean over dims. (5) The loss is a
    mean over steps.
    """

    def __init__(self, settings: DPOKSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.needs = frozenset({"rollout", "reward", *(["reference"] if settings.kl_beta else [])})
        self.value = Value(settings.value_learning_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs of the value network."""
        return self.value.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.value.load_state_dict(state)

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        s = self.settings
        trajectory, scores = yield from sample_and_score(
            policy, prompts, reward, s.group, rollout_seed(seed, step), self.name
        )
        check_noise(trajectory, self.name)
        everyone, _, here = over_ranks(scores, trajectory.group)
        self.value.count(everyone.total[everyone.total_valid])
        return Experience(
            trajectory,
            scores,
            counted=everyone.total_valid[here],
            log=reward_log(everyone),
        )

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        seen: list[tuple[Tensor, Tensor]] = []  # inputs of V (N,H), and the rewards (N,)
        units = row_units(experience)
        for mine, total in deal(*units, self.settings.updates_per_rollout, experience.trajectory):
            cells = [unit for block in mine for unit in block]
            yield from emit(policy, cells, partial(self._loss, policy, experience, total, seen))
        self._learn(seen)

    def _loss(
        self, policy: Policy, experience: Experience, total: float, seen: list[tuple[Tensor, Tensor]], unit: Unit
    ) -> Loss:
        rows, steps = unit
        s, trajectory = self.settings, experience.trajectory
        assert experience.scores is not None
        assert experience.counted is not None
        replayed = policy.replay(trajectory, rows, steps, versus="reference" if s.kl_beta else None)
        device = replayed.score.device
        counts = replayed.mask.to(device) & experience.counted[rows].to(device)[:, None]
        reward = experience.scores.total[rows][:, None].expand(-1, len(steps))  # (R,S)
        x = self.value.inputs(replayed, trajectory, rows, steps)
        surprise = reward - self.value(x)
        seen.append((x[counts.cpu()], reward[counts.cpu()]))
        old = trajectory.logp[rows][:, steps].to(device)
        loss, clipped = ppo_clip(replayed.score, old, s.reward_weight * surprise.to(device), *s.clip_nats)
        log = {
            "ratio/mean": (replayed.score - old).exp(),
            "clip_ratio/region_mean": clipped,
            "value/error": surprise.square().to(device),
        }
        if s.kl_beta:
            log["kl"] = kl_of(replayed)
            loss = loss + s.kl_beta * log["kl"]
        log["loss"] = loss
        logged = sums(log, counts)
        if s.kl_beta:
            kl, cells = logged["kl"]
            logged["kl/path"] = kl, cells / trajectory.logp.shape[1]
        return Loss(torch.where(counts, loss, 0.0).sum() / total, logged)

    def _learn(self, seen: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Fit V to the inputs of all ranks; a rank may have none, and then does not know their width."""
        width = int(gather(torch.tensor([seen[0][0].shape[1] if seen else 0])).max())
        if width == 0 or self.settings.value_steps == 0:
            return
        x = gather(torch.cat([torch.zeros(0, width), *(x for x, _ in seen)]))
        rewards = gather(torch.cat([torch.zeros(0), *(reward for _, reward in seen)]))
        self.value.learn(x, rewards, self.settings.value_steps)
