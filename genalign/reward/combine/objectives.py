"""Several objectives at once: fronts, directions that the prompt names, gains over the siblings, weights that learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from genalign.fronts import front_ranks
from genalign.reward.base import Scope
from genalign.reward.combine.columns import batch_mean, totals
from genalign.reward.combine.combination import Summary, choice, number, weighted
from genalign.types import Media, Prompt, Reward, Scores, UsageError

Front = Literal["front", "rank"]
Within = Literal["group", "batch"]
Rule = Literal["hypervolume", "gradient"]


class Pareto(Summary):
    """1 for a row that no other beats in every part (at least as good in all, better in one), else 0 (Parrot).

    by: "rank" is minus the number of fronts before the row's own. within: the rows compared are siblings, or the
    whole batch of this rank. Monotone maps of single parts change nothing; equal rows stand together. A row counts
    where all its parts do, and is compared with such rows only.
    """

    siblings = True

    def __init__(
        self, parts: Sequence[Reward], by: Front = "front", within: Within = "group", name: str = "pareto"
    ) -> None:
        super().__init__(list(parts), name)
        if len(self.parts) < 2:
            raise UsageError(f"reward {name!r} needs at least two parts; of one, the best row is the front")
        self.by, self.within = choice(name, "by", by, Front), choice(name, "within", within, Within)
        self.settings = (by, within)

    @property
    def looks_at(self) -> Scope:
        return "batch" if self.within == "batch" else super().looks_at

    @property
    def differentiable(self) -> bool:
        return False

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        values, valid, failed = totals(scores)
        readable = valid.all(1)
        together = torch.zeros(len(values), dtype=torch.long)
        if self.within == "group":
            together = torch.arange(len(values)) if group is None else group.cpu()
        rank = front_ranks(torch.where(readable[:, None], values.detach(), torch.nan), together)
        score = (rank == 0).float() if self.by == "front" else -rank.nan_to_num(0.0).float()
        return self.summarise(scores, score, readable, failed.any(1))


class Conditioned(Summary):
    """v . r, with the direction v named by the prompt: directional preference alignment (DPA), MODPO's weights.

    key: the prompt's fact that holds v, a list with one number a part, or a mapping part name -> number (0 for
    a part that it leaves out). unit: v is scaled to length 1, as in DPA. A prompt without a direction abstains; one
    whose direction does not fit fails. A part of weight 0 may abstain or fail.
    """

    def __init__(
        self, parts: Sequence[Reward], key: str = "direction", *, unit: bool = True, name: str = "conditioned"
    ) -> None:
        super().__init__(list(parts), name)
        if not self.parts:
            raise UsageError(f"reward {name!r} has no parts to weigh; give it at least one")
        self.key, self.unit = key, bool(unit)
        self.settings = (key, self.unit)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {f"facts.{self.key}"}

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        values, valid, part_failed = totals(scores)
        given = [self._direction(prompt.facts.get(self.key)) for prompt in prompts]
        absent = torch.tensor([prompt.facts.get(self.key) is None for prompt in prompts], dtype=torch.bool)
        unfit = torch.tensor([row is None for row in given], dtype=torch.bool) & ~absent
        v = torch.tensor([row or [0.0] * len(self.parts) for row in given])  # (B,P)
        used = v != 0
        failed = unfit | (part_failed & used).any(1)
        readable = ~absent & ~failed & (valid | ~used).all(1)
        return self.summarise(scores, torch.where(used, v * values, 0.0).sum(1), readable, failed)

    def _direction(self, given: Any) -> list[float] | None:
        """One number a part, or None where what the prompt gives is not a direction."""
        if isinstance(given, Mapping):
            if set(given) - {part.name for part in self.parts}:
                return None
            given = [given.get(part.name, 0.0) for part in self.parts]
        if not isinstance(given, list | tuple) or len(given) != len(self.parts):
            return None
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in given):
            return None
        length = math.sqrt(sum(x * x for x in given))
        return [x / (length if self.unit else 1.0) for x in given] if length else None


class MarginalGain(Summary):
    """F(S + i) - F(S), averaged over all orders in which the siblings may come: submodular reward (SubRL).

    F(S) = sum_k w_k max over i in S of max(r_ik, 0): how well the set covers the parts, which play the anchors
    (likeness to several exemplars or prompts). It is monotone and submodular; a row that covers what a sibling covers
    already gains little, and the gains of a group add up to its F. Rows where a part is missing are in no set.

    Departs from the paper: the average over orders, which has a closed form here (the Shapley value of a maximum),
    stands for one order of time, so that it does not matter how samples are numbered.
    """

    siblings = True

    def __init__(self, parts: Sequence[Reward | tuple[Reward, float]], name: str = "marginal") -> None:
        rewards, weights = weighted(parts)
        if not weights or any(weight <= 0 for weight in weights):
            raise UsageError(f"the parts of reward {name!r} need weights above 0, and there must be one")
        super().__init__(rewards, name)
        self.part_weights = self.settings = weights

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        values, valid, failed = totals(scores)
        readable = valid.all(1)
        together = torch.arange(len(values)) if group is None else group.cpu()
        total = torch.zeros_like(values[:, 0])
        for name in torch.unique(together):
            rows = torch.nonzero((together == name) & readable).flatten()
            if len(rows):
                gains = shapley_of_maximum(values[rows].clamp(min=0)) @ torch.tensor(self.part_weights)
                total = total.index_add(0, rows, gains)
        return self.summarise(scores, total, readable, failed.any(1))


class DynamicWeights(Summary):
    """Weights that learn from how training goes ("Learning to Optimize Multi-Objective Alignment Through Dynamic Reward
    Weighting").

    by "hypervolume": mean of the parts x (0.5 + 1.5 tanh(dHV)). dHV is what the batch's mean scores, as a point, add to
    the volume that the points before dominate above `reference` (a number a part, or one for all); a point that adds
    something is kept, unless a later one beats it. Column `multiplier`. A division by the std of the group cancels a
    factor of the whole batch: take it with std "none".

    by "gradient": sum_i w_i r_i, the weights starting equal; w <- softmax(log w + rate s / scale), s_i = sum_j <g_i,
    g_j>: a part whose gradient agrees with the others' gains weight. Columns `weight/PART` and `centred/PART`.

    Meant for parts of one scale, such as [0,1]. A row counts where all its parts do.

    Departs from the paper: (1) points are means of training batches, not of a validation set. (2) A reward sees no
    gradient of the policy: <g_i, g_j> is taken as the covariance of the parts within groups, which it is where the
    gradients of single samples are orthogonal and of one length. `mirror_ascent` takes any other.
    """

    def __init__(
        self,
        parts: Sequence[Reward],
        by: Rule = "hypervolume",
        *,
        reference: float | Sequence[float] = 0.0,
        rate: float = 0.1,
        scale: float = 1.0,
        name: str = "dynamic",
    ) -> None:
        super().__init__(list(parts), name)
        if not self.parts:
            raise UsageError(f"reward {name!r} has no parts to weigh; give it at least one")
        self.by: Rule = choice(name, "by", by, Rule)
        self.rate, self.scale = number(name, "rate", rate, 0.0), number(name, "scale", scale, 1e-12)
        corner = list(reference) if isinstance(reference, list | tuple) else [reference] * len(self.parts)
        if len(corner) != len(self.parts):
            raise UsageError(f"reward {name!r} has {len(self.parts)} parts, but its reference {len(corner)} numbers")
        self.reference = torch.tensor([number(name, "reference", x) for x in corner], dtype=torch.float64)
        count = len(self.parts)
        if by == "hypervolume":
            self.own: tuple[str, ...] = ("multiplier", *(f"score/{part.name}" for part in self.parts))
            self.settings = (by, self.reference.tolist())
            self.state = {"points": self.reference[None], "multiplier": torch.tensor(0.5, dtype=torch.float64)}
        else:
            names = [part.name for part in self.parts]
            self.own = (*(f"weight/{name}" for name in names), *(f"centred/{name}" for name in names))
            self.settings = (by, self.rate, self.scale)
            self.state = {"weights": torch.full((count,), 1 / count, dtype=torch.float64)}
        self.siblings = by == "gradient"

    def update(self, scores: Scores, step: int) -> None:
        if self.by == "hypervolume":
            means = [batch_mean(scores, f"score/{part.name}") for part in self.parts]
            if None not in means:  # a batch in which a part was never valid is not a point
                self.state = self._widened(torch.tensor(means, dtype=torch.float64))
        else:
            columns = [scores.names.index(f"centred/{part.name}") for part in self.parts]
            rows = scores.valid[:, columns].all(1)
            centred = scores.values[rows][:, columns].double()
            if len(centred):
                products = centred[:, :, None] * centred[:, None, :]  # (B,P,P), summed in one order on every rank
                gram = products.sort(0).values.mean(0)
                self.state = {"weights": mirror_ascent(self.state["weights"], gram, self.rate, self.scale)}
        super().update(scores, step)

    def _widened(self, point: Tensor) -> dict[str, Tensor]:
        """The state after a batch's mean scores (P,): the front's points, and the multiplier of the gain in volume."""
        points = torch.cat([self.state["points"], point[None]])
        gain = hypervolume(points, self.reference) - hypervolume(self.state["points"], self.reference)
        kept = points[front_ranks(points, torch.zeros(len(points))) == 0] if gain > 0 else self.state["points"]
        return {"points": kept, "multiplier": torch.tensor(0.5 + 1.5 * math.tanh(gain), dtype=torch.float64)}

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        values, valid, failed = totals(scores)
        readable = valid.all(1)
        if self.by == "hypervolume":
            factor = torch.full_like(values[:, 0], float(self.state["multiplier"]))
            own = [factor, *values.unbind(1)]
            return self.summarise(scores, factor * values.mean(1), readable, failed.any(1), own=own)
        weights = self.state["weights"].to(values)
        centred = _centred(values.detach(), readable, group)
        own = [*weights.expand_as(values).unbind(1), *centred.unbind(1)]
        return self.summarise(scores, values @ weights, readable, failed.any(1), own=own)


def _centred(values: Tensor, readable: Tensor, group: Tensor | None) -> Tensor:
    """(B,P) minus the mean of the readable siblings; strangers are compared with all."""
    together = torch.zeros(len(values), dtype=torch.long) if group is None else group.cpu()
    _, index = torch.unique(together, return_inverse=True)
    zeros = values.new_zeros(int(index.max()) + 1 if len(index) else 0, values.shape[1])
    count = zeros[:, :1].index_add(0, index, readable[:, None].to(values)).clamp(min=1)
    mean = zeros.index_add(0, index, torch.where(readable[:, None], values, 0.0)) / count
    return values - mean[index]


def hypervolume(points: Tensor, reference: Tensor) -> float:
    """Volume (in the parts' units, multiplied) dominated by points (N,P) above reference (P,); more is better."""
    import moocore

    return float(moocore.hypervolume(points.double().numpy(), ref=reference.double().numpy(), maximise=True))


def mirror_ascent(weights: Tensor, gram: Tensor, rate: float, scale: float) -> Tensor:
    """softmax(log w + rate s / scale), s the row sums of gram (P,P), for weights (P,) > 0 that add up to 1."""
    return torch.softmax(weights.log() + rate * gram.sum(1) / scale, 0)


def shapley_of_maximum(values: Tensor) -> Tensor:
    """values (n,K) >= 0 -> (n,K): each row's share in the maximum of its column, averaged over all orders.

    (The airport game, Littlechild and Owen, 1973: each step of the sorted values is shared by those who reach it.)
    """
    # Sorted upwards, the step from row k - 1 to row k is reached by the n - k rows from k on, which share it equally.
    ordered, order = values.sort(0)
    steps = torch.diff(ordered, dim=0, prepend=torch.zeros_like(ordered[:1]))
    sharing = torch.arange(len(values), 0, -1, dtype=values.dtype)[:, None]
    return torch.zeros_like(values).scatter(0, order, (steps / sharing).cumsum(0))
