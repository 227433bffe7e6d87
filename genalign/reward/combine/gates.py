"""Rewards that let others count, or not: gates in order of priority, and factors that can only take away."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genalign.reward.combine.columns import least_confidence, totals
from genalign.reward.combine.combination import Summary, number
from genalign.types import Media, Prompt, Reward, Scores, UsageError


class Cascade(Summary):
    """sum_i r_i prod_{j<i} 1[r_j >= gate_j]: a part counts where all before it reach their gates (G-RA).

    parts: (reward, gate) pairs, the first first; None, or a bare reward: no gate, what follows counts always. Where the
    later parts are >= 0 a row that passes lies above every row that does not.

    A part that does not count has no effect: neither its score, nor its abstaining or failing, is seen in the total.
    One that counts and abstains makes the row abstain (which gates it would pass is unknown); one that counts and
    failed masks it.

    Departs from the paper's code: a score equal to its gate passes.
    """

    def __init__(self, parts: Sequence[Reward | tuple[Reward, float | None]], name: str = "cascade") -> None:
        if not parts:
            raise UsageError(f"reward {name!r} is a cascade of nothing; give it at least one part")
        rewards: list[Reward] = []
        gates: list[float | None] = []
        for part in parts:
            reward, at = part if isinstance(part, tuple) else (part, None)
            rewards.append(reward)
            gates.append(None if at is None else number(name, "a gate", at))
        super().__init__(rewards, name)
        self.settings = self.gates = tuple(gates)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        values, valid, part_failed = totals(scores)
        # counts (B,): rows that passed every gate so far. Only there is the next part read at all.
        total, counts = torch.zeros_like(values[:, 0]), torch.ones_like(valid[:, 0])
        readable, failed = counts, ~counts
        reached = []
        for k, at in enumerate(self.gates):
            reached.append(counts)
            total = total + torch.where(counts, values[:, k], 0.0)
            readable, failed = readable & (valid[:, k] | ~counts), failed | (part_failed[:, k] & counts)
            counts = counts & valid[:, k]
            if at is not None:
                counts = counts & (values[:, k] >= at)
        return self.summarise(
            scores, total, readable, failed, confidence=least_confidence(scores, torch.stack(reached, 1))
        )


class Gate(Cascade):
    """high + 1[high >= at] low: what is wanted after what is needed (G-RA); a cascade of two."""

    def __init__(self, high: Reward, low: Reward, at: float = 0.5, name: str = "gate") -> None:
        super().__init__([(high, number(name, "at", at)), (low, None)], name)


class Product(Summary):
    """main prod_i clamp(p_i, 0, 1): penalties as factors, which no main score can buy back (CaRL).

    With a factor that is 0 or 1 it means "only if": a length penalty among correct answers alone, or a budget. A row
    counts where all its parts do.

    Departs from the paper: a hard infraction is a factor of 0; there is no reward of its own for it.
    """

    def __init__(self, main: Reward, by: Sequence[Reward] | Reward, name: str = "product") -> None:
        factors = list(by) if isinstance(by, Sequence) else [by]
        super().__init__([main, *factors], name)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        values, valid, failed = totals(scores)
        total = values[:, 0] * values[:, 1:].clamp(0, 1).prod(1)
        return self.summarise(scores, total, valid.all(1), failed.any(1))
