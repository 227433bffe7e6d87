"""DPOK: a policy gradient with a learned value of x_t as its baseline, and the KL to the reference along the path."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from genalign.method.common import (
    check_noise,
    deal,
    emit,
    kl_of,
    over_ranks,
    reward_log,
    rollout_seed,
    row_units,
    sample_and_score,
    sums,
)
from genalign.method.settings import MethodSettings
from genalign.method.surrogates import ppo_clip
from genalign.ranks import gather
from genalign.types import Experience, Loss, Method, Policy, Prompt, Reward, Steps

Unit = tuple[list[int], list[int]]  # rows, steps
WORDS = 64  # buckets that the words of a prompt are counted in
WIDTH = 64


class ValueSettings(MethodSettings):
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
        return ValueGradient(self)


class Value:
    """V(x_t, prompt, step), the reward a path at x_t will end with: a two-layer network in units of the rewards so far.

    It reads the policy's features of x_t where replay gives any, the prompt's words, counted in hashed buckets, and the
    step's place in the row. Its weights are drawn alike on every rank and learn from the rows of all.
    """

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.moments = torch.zeros(3, dtype=torch.float64)  # number, sum and sum of squares of all rewards
        self.network: nn.Sequential | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    def inputs(self, replayed: Steps, prompts: Sequence[Prompt], steps: Sequence[int], total: int) -> Tensor:
        """(R,S,H)"""
        size = replayed.score.shape
        words = torch.stack([_words(prompt.text) for prompt in prompts])[:, None].expand(*size, WORDS)
        place = torch.tensor(steps, dtype=torch.float32)[None, :, None].expand(*size, 1) / max(1, total - 1)
        features = [] if replayed.features is None else [replayed.features.detach().float().cpu()]
        return torch.cat([words, place, *features], -1)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., H) -> (...) in units of the reward."""
        self._start(x.shape[-1])
        assert self.network is not None
        mean, std = self._scale()
        with torch.no_grad():
            return mean + std * self.network(x).squeeze(-1)

    def learn(self, x: Tensor, rewards: Tensor, steps: int) -> float:
        """AdamW on the mean squared error of all (N,H) rows against their rewards (N,); the last step's error."""
        self._start(x.shape[-1])
        assert self.network is not None
        assert self.optimizer is not None
        mean, std = self._scale()
        wanted, error = ((rewards - mean) / std).float(), torch.zeros(())
        with torch.enable_grad():
            for _ in range(steps):
                error = (self.network(x).squeeze(-1) - wanted).square().mean()
                self.optimizer.zero_grad()
                error.backward()
                self.optimizer.step()
        return float(error.detach()) * std**2

    def count(self, rewards: Tensor) -> None:
        """Take rewards (N,) of all ranks into the running mean and standard deviation."""
        values = rewards.double()
        self.moments = self.moments + torch.stack([values.new_tensor(len(values)), values.sum(), values.square().sum()])

    def state_dict(self) -> dict[str, Tensor]:
        state = {"moments": self.moments}
        if self.network is not None and self.optimizer is not None:
            state |= {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
            for k, slots in self.optimizer.state_dict()["state"].items():
                state |= {f"optimizer.{k}.{name}": tensor for name, tensor in slots.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.moments = state["moments"].clone()
        network = {name.removeprefix("network."): t for name, t in state.items() if name.startswith("network.")}
        if not network:
            return
        self._start(network["0.weight"].shape[1])
        assert self.network is not None
        assert self.optimizer is not None
        self.network.load_state_dict(network)
        whole: dict[str, Any] = self.optimizer.state_dict()
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, k, slot = name.split(".")
                slots.setdefault(int(k), {})[slot] = tensor.clone()
        self.optimizer.load_state_dict({**whole, "state": slots})

    def _start(self, width: int) -> None:
        if self.network is not None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            last = nn.Linear(WIDTH, 1)
            self.network = nn.Sequential(nn.Linear(width, WIDTH), nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # the first baseline is the mean
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=0.0)

    def _scale(self) -> tuple[float, float]:
        number, total, squares = self.moments.tolist()
        mean = total / max(number, 1.0)
        return mean, math.sqrt(max(squares / max(number, 1.0) - mean**2, 0.0)) or 1.0


class ValueGradient:
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

    def __init__(self, settings: ValueSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self.needs = frozenset({"rollout", "reward", *(["reference"] if settings.kl_beta else [])})
        self.value = Value(settings.value_learning_rate)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs of the value network."""
        return self.value.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.value.load_state_dict(state)

    def collect(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Experience:
        s = self.settings
        trajectory, scores = sample_and_score(policy, prompts, reward, s.group, rollout_seed(seed, step), self.name)
        check_noise(trajectory, self.name)
        everyone, _, here = over_ranks(scores, trajectory.group)
        self.value.count(everyone.total[everyone.total_valid])
        return Experience(
            trajectory,
            scores,
            counted=everyone.total_valid[here],
            global_rows=int(everyone.total_valid.sum()),
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
        x = self.value.inputs(replayed, [trajectory.prompts[row] for row in rows], steps, trajectory.logp.shape[1])
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


def _words(text: str) -> Tensor:
    """(WORDS,): how often a word of each bucket occurs, normalised; feature hashing (Weinberger et al. 2009)."""
    counts = torch.zeros(WORDS)
    for word in re.findall(r"\w+", text.lower()):
        counts[hashlib.sha256(word.encode()).digest()[0] % WORDS] += 1.0
    return counts / counts.norm().clamp(min=1.0)
