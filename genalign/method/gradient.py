"""Policy gradients on recorded steps: DDPO, Flow-GRPO, GRPO and RLOO are settings of one class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from genalign.losses import advantages, k3, ppo_clip
from genalign.method.common import deal, emit, over_ranks, reward_log, rollout_seed, sample_and_score, sums
from genalign.method.settings import MethodSettings
from genalign.types import Experience, Loss, Policy, Prompt, Reward, Steps

Unit = tuple[list[int], list[int]]  # rows, steps


class PolicyGradient:
    """Clipped policy gradient with an advantage per sample that all its steps share.

    DDPO (arXiv 2305.13301, eq. 6), Flow-GRPO (arXiv 2505.05470, eq. 4), GRPO (arXiv 2402.03300, eq. 3), RLOO (arXiv
    2402.14740): what tells them apart are the baseline, the std and the mean that the loss is.

    Departs from the papers: (1) The loss is divided by the steps (or rows) that count over all ranks, so that ranks,
    accumulation and dropped rows change nothing. (2) The clip range is in nats of the summed log-ratio. (3) The KL term
    is the closed form where the policy has one, else k3, over the rows that count. (4) Nothing moves when no group has
    spread.
    """

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.needs = frozenset({"rollout", "reward", *(["reference"] if settings.kl_beta else [])})

    def collect(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Experience:
        s = self.settings
        trajectory, scores = sample_and_score(policy, prompts, reward, s.group, rollout_seed(seed, step), self.name)
        everyone, group, here = over_ranks(scores, trajectory.group)
        advantage, counted, spread = advantages(everyone, group, s.advantage, s.std, s.baseline)
        if s.advantage_clip is not None:
            advantage = advantage.clamp(-s.advantage_clip, s.advantage_clip)
        return Experience(
            trajectory,
            scores,
            advantage=advantage[here],
            counted=counted[here],
            global_rows=int(counted.sum()),
            log={**reward_log(everyone), **spread},
        )

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        trajectory = experience.trajectory
        assert experience.counted is not None
        steps = trajectory.mask.cpu() & experience.counted[:, None]  # (B,S)
        weight = steps if self.settings.loss_per == "step" else steps.any(1, keepdim=True)
        rows = range(len(trajectory.prompts))
        blocks = [list(rows[i : i + trajectory.rows_together]) for i in rows[:: trajectory.rows_together]]
        counts = [float(weight[block].sum()) for block in blocks]
        for mine, total in deal(blocks, counts, self.settings.updates_per_rollout, trajectory):
            units = [unit for block in mine for unit in trajectory.units(block) if steps[unit[0]][:, unit[1]].any()]
            yield from emit(policy, units, partial(self._loss, policy, experience, total))

    def _loss(self, policy: Policy, experience: Experience, total: float, unit: Unit) -> Loss:
        rows, steps = unit
        s, trajectory = self.settings, experience.trajectory
        assert experience.advantage is not None
        assert experience.counted is not None
        replayed = policy.replay(trajectory, rows, steps, versus="reference" if s.kl_beta else None)
        device = replayed.score.device
        old = trajectory.logp[rows][:, steps].to(device)  # (R,S)
        advantage = experience.advantage[rows].to(device)[:, None]
        counts = replayed.mask & experience.counted[rows].to(device)[:, None]
        loss, clipped = ppo_clip(replayed.score, old, advantage, *s.clip_nats)
        log = {"ratio/mean": (replayed.score - old).exp(), "clip_ratio/region_mean": clipped}
        if s.kl_beta:
            log["kl"] = _kl(replayed)
            loss = loss + s.kl_beta * log["kl"]
        log["loss"] = loss
        return Loss(torch.where(counts, loss, 0.0).sum() / total, sums(log, counts))


def _kl(replayed: Steps) -> Tensor:
    if replayed.kl is not None:
        return replayed.kl
    assert replayed.versus_score is not None
    return k3(replayed.score, replayed.versus_score)
