"""PPO with a value head, and RTO, whose tokens have rewards of their own: advantages step by step, by GAE."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genalign.method.common import Collecting, check_noise, over_ranks, reward_log, rollout_seed, sample_and_score, sums
from genalign.method.guide import Guide
from genalign.method.settings import MethodSettings
from genalign.method.surrogates import ppo_clip
from genalign.method.updates import deal, emit, row_units
from genalign.method.value import Value
from genalign.ranks import all_sum, gather
from genalign.types import Experience, Loss, Method, Policy, Prompt, Reward, Scoring, Trajectory, UsageError

Unit = tuple[list[int], list[int]]  # rows, steps


class PPOSettings(MethodSettings):
    """PPO and RTO: how far ahead an advantage looks, what each step is rewarded by, and how the value is learnt."""

    presets: ClassVar = {
        "ppo": {"group": 4},
        "rto": {"group": 4, "guide_weight": 0.05},
    }
    folders: ClassVar = {"guide": ()}

    gae_lambda: float = Field(0.95, ge=0, le=1)
    """1: what the row earns from here on, less the value; 0: what one step earns and the next value, less the value."""
    discount: float = Field(1.0, gt=0, le=1)
    """What a reward one step later counts."""
    kl_beta: float = Field(0.05, ge=0)
    """What is taken from a step's reward for each nat that the policy finds it more likely than the base."""
    guide: str | None = None
    """`adapter/` of an earlier run, such as one of DPO, whose log-ratio to the base rewards each step (RTO)."""
    guide_weight: float = Field(0.0, ge=0)
    """What a nat of that log-ratio counts, in units of the reward."""
    clip_nats: tuple[float, float] = (0.22, 0.18)
    """How far, down and up, a step's summed log-ratio may move before its gradient stops, in nats."""
    value_steps: int = Field(20, ge=0)
    """Updates of the value network per rollout; 0: the baseline is the running mean of the rewards."""
    value_learning_rate: float = Field(1e-3, gt=0)
    """Of the value network's AdamW."""

    def build(self, folder: Path) -> Method:
        if (self.guide is None) != (self.guide_weight == 0):
            raise UsageError(
                f"method {self.name} rewards steps by another adapter where both are set: method.guide, the adapter/ "
                f"of a finished run such as one of dpo, and method.guide_weight"
            )
        return PPO(self, folder)


@dataclass(frozen=True, kw_only=True)
class Estimated(Experience):
    """inputs (B,S,H): what the value network reads. returns (B,S): what it is to learn, in units of the reward."""

    inputs: Tensor
    returns: Tensor


class PPO(Collecting):
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), each step with an advantage of its own by GAE (arXiv
    1506.02438, eq. 16), normalised over the steps of the batch.

    The last step of a row earns the reward; each step is charged kl_beta (log p - log p_base) (arXiv 1909.08593). With
    `guide`, each also earns guide_weight (log p_guide - log p_base): RTO (arXiv 2404.18922), whose sum over a row is
    the reward that a DPO policy stands for, dealt out to its tokens. V is DPOK's small network: it reads what the base,
    whose weights stay, computed before each step (a language model's hidden states, x_t of a diffusion model), the
    prompt's words, and the step's place.

    Departs from the papers: (1) V shares no weight with the policy, and its loss is not clipped; it is fitted to a
    rollout's returns after they have been used. (2) The clip range is in nats of the summed log-ratio. (3) A step whose
    answer was a tool's is none: returns pass over it. (4) RTO's reward of a token is not clipped, as in its paper; its
    code does.
    """

    def __init__(self, settings: PPOSettings, folder: Path = Path()) -> None:
        self.settings, self.name = settings, settings.name
        self.needs = frozenset({"rollout", "reward", "reference"})
        self.guide = None if settings.guide is None else Guide(folder / settings.guide)
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
        inputs, drift, lead = self._look(policy, trajectory)
        mask, counted = trajectory.mask.cpu(), everyone.total_valid[here]
        used = mask & counted[:, None]
        rewards = at_the_end(scores.total, mask) - s.kl_beta * drift + s.guide_weight * lead
        values = self.value(inputs)
        advantage = gae(rewards, values, mask, s.discount, s.gae_lambda)
        log = {**reward_log(everyone), "kl": _mean(drift, used)}
        if self.guide is not None:
            log["rewards/guide/mean"] = _mean(lead, used)
        return Estimated(
            trajectory,
            scores,
            advantage=_whitened(advantage, used),
            counted=counted,
            log=log,
            inputs=inputs,
            returns=advantage + values,
        )

    @torch.no_grad()
    def _look(self, policy: Policy, trajectory: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        """What V reads of every step (B,S,H); log p - log p_base of each, and log p_guide - log p_base (0 without a
        guide), (B,S)."""
        shape = trajectory.logp.shape
        inputs, drift, lead = torch.zeros(0), torch.zeros(shape), torch.zeros(shape)
        for rows, steps in trajectory.units():
            cell = torch.tensor(rows)[:, None], torch.tensor(steps)
            with policy.weights("reference"):
                base = policy.replay(trajectory, rows, steps)
            x = self.value.inputs(base, trajectory, rows, steps)
            inputs = inputs if len(inputs) else torch.zeros(*shape, x.shape[-1])
            if x.shape[-1] != inputs.shape[-1]:
                raise UsageError(f"method {self.name} needs steps of one model, and here several take part; take dpok")
            inputs[cell] = x
            score, mask = base.score.cpu(), base.mask.cpu()
            drift[cell] = torch.where(mask, trajectory.logp[cell].cpu() - score, 0.0)
            if self.guide is not None:
                found = self.guide.score(policy, trajectory, rows, steps).cpu()
                lead[cell] = torch.where(mask, found - score, 0.0)
        return inputs, drift, lead

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        units = row_units(experience)
        for mine, total in deal(*units, self.settings.updates_per_rollout, experience.trajectory):
            cells = [unit for block in mine for unit in block]
            yield from emit(policy, cells, partial(self._loss, policy, experience, total))
        self._learn(experience)

    def _loss(self, policy: Policy, experience: Experience, total: float, unit: Unit) -> Loss:
        rows, steps = unit
        trajectory = experience.trajectory
        assert isinstance(experience, Estimated)
        assert experience.counted is not None
        replayed = policy.replay(trajectory, rows, steps)
        device = replayed.score.device
        old = trajectory.logp[rows][:, steps].to(device)
        advantage = experience.advantage_of(rows, steps).to(device)
        counts = replayed.mask & experience.counted[rows].to(device)[:, None]
        loss, clipped = ppo_clip(replayed.score, old, advantage, *self.settings.clip_nats)
        error = experience.returns[rows][:, steps] - self.value(experience.inputs[rows][:, steps])
        log = {
            "ratio/mean": (replayed.score - old).exp(),
            "clip_ratio/region_mean": clipped,
            "value/error": error.square().to(device),
            "loss": loss,
        }
        return Loss(torch.where(counts, loss, 0.0).sum() / total, sums(log, counts))

    def _learn(self, experience: Experience) -> None:
        """Fit V to the returns of all ranks."""
        assert isinstance(experience, Estimated)
        assert experience.counted is not None
        if self.settings.value_steps == 0:
            return
        used = experience.trajectory.mask.cpu() & experience.counted[:, None]
        x, wanted = gather(experience.inputs[used]), gather(experience.returns[used].float())
        if len(x):
            self.value.learn(x, wanted, self.settings.value_steps)


def at_the_end(total: Tensor, mask: Tensor) -> Tensor:
    """(B,S): each row's total (B,) at its last step in mask (B,S), 0 elsewhere."""
    later = mask.flip(1).cumsum(1).flip(1)  # steps from here on
    return torch.where(mask & (later == 1), total[:, None], 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, decay: float) -> Tensor:
    """Advantages (B,S) of the steps in mask, 0 elsewhere: sum_k (discount decay)^k (r + discount V' - V), over a row's
    own steps, the next one of which may be some columns away; V' is 0 after the last (arXiv 1506.02438, eq. 16)."""
    advantage = torch.zeros_like(rewards)
    behind, value = torch.zeros(len(rewards)), torch.zeros(len(rewards))
    for step in reversed(range(rewards.shape[1])):
        here = mask[:, step]
        error = rewards[:, step] + discount * value - values[:, step]
        behind = torch.where(here, error + discount * decay * behind, behind)
        value = torch.where(here, values[:, step], value)
        advantage[:, step] = torch.where(here, behind, 0.0)
    return advantage


def _whitened(x: Tensor, used: Tensor) -> Tensor:
    """x (B,S) less its mean, by its standard deviation, over the used entries of all ranks; 0 elsewhere."""
    kept = x[used].double()
    number, total, squares = all_sum(
        torch.stack([kept.new_tensor(len(kept)), kept.sum(), kept.square().sum()])
    ).tolist()
    mean = total / max(number, 1.0)
    deviation = max((squares - number * mean**2) / max(number - 1, 1.0), 0.0) ** 0.5
    return torch.where(used, (x - mean) / (deviation or 1.0), 0.0).float()


def _mean(x: Tensor, used: Tensor) -> float:
    """Of x (B,S) over the used entries of all ranks."""
    total, number = all_sum(torch.stack([x[used].double().sum(), used.sum().double()])).tolist()
    return float(total / max(number, 1.0))
