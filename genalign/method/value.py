"""V: what a path will be worth, learnt beside the policy; the baseline of DPOK, PPO and RTO."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genalign.types import Steps, Trajectory

WORDS = 64  # buckets that the words of a prompt are counted in
WIDTH = 64


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

    def inputs(self, replayed: Steps, trajectory: Trajectory, rows: Sequence[int], steps: Sequence[int]) -> Tensor:
        """What it reads of these rows and steps of a trajectory, (R,S,H), as they were replayed."""
        size, total = replayed.score.shape, trajectory.logp.shape[1]
        words = torch.stack([_words(trajectory.prompts[row].text) for row in rows])[:, None].expand(*size, WORDS)
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


def _words(text: str) -> Tensor:
    """(WORDS,): how often a word of each bucket occurs, normalised; feature hashing (Weinberger et al. 2009)."""
    counts = torch.zeros(WORDS)
    for word in re.findall(r"\w+", text.lower()):
        counts[hashlib.sha256(word.encode()).digest()[0] % WORDS] += 1.0
    return counts / counts.norm().clamp(min=1.0)
