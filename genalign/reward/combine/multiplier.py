"""Weights that move while training: by the step (Schedule), or until a demand is met (Constraint)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genalign.reward.combine.columns import batch_mean, failed_rows
from genalign.reward.combine.combination import Summary, choice, number
from genalign.types import Media, Prompt, Reward, Scores, UsageError

Of = Literal["weight", "band"]
Squash = Literal["sigmoid", "clamp"]


class Schedule(Summary):
    """A reward that changes with the training step, as ToolRL's early format and Vision-R1's harder thresholds do.

    points: step -> value; between two points the value is interpolated, or with `hold` that of the former; before the
    first and after the last it is theirs. of: "weight", the score is multiplied by the value; at 0 it is 0 for every
    row, and a failure masks none. "band": values are [low, high]; below low the score is 0, from high on 1, and in
    between itself (low = high: a threshold).

    The step is the one that `update` was last given, plus 1; it is 0 before, and an evaluation does not move it.
    """

    def __init__(
        self, part: Reward, points: Mapping[int, Any], of: Of = "weight", *, hold: bool = False, name: str = "schedule"
    ) -> None:
        super().__init__([part], name)
        if not isinstance(points, Mapping) or not points:
            raise UsageError(f"reward {name!r} needs points, a mapping of steps to values")
        self.of, self.hold = choice(name, "of", of, Of), bool(hold)
        self.steps = sorted(int(number(name, "a step", step, 0)) for step in points)
        width = 1 if of == "weight" else 2
        rows = []
        for _, value in sorted(points.items()):
            row = value if isinstance(value, list | tuple) else [value]
            if len(row) != width:
                form = "a number" if width == 1 else "[low, high]"
                raise UsageError(f"each point of reward {name!r} must be {form}")
            rows.append([number(name, "a point", edge) for edge in row])
        self.values = np.array(rows)  # (N,1) or (N,2)
        if width == 2 and (self.values[:, 0] > self.values[:, 1]).any():
            raise UsageError(f"a band of reward {name!r} has low above high; exchange them")
        self.settings = (of, self.hold, self.steps, self.values.tolist())
        self.state = {"step": torch.tensor(0)}

    def at(self, step: int) -> list[float]:
        """The value at a step: [weight], or [low, high]."""
        if self.hold:
            row = max(0, int(np.searchsorted(self.steps, step, side="right")) - 1)
            return [float(value) for value in self.values[row]]
        return [float(np.interp(step, self.steps, column)) for column in self.values.T]

    def update(self, scores: Scores, step: int) -> None:
        self.state = {"step": torch.tensor(step + 1)}
        super().update(scores, step)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        (scores,) = self._score_parts(prompts, media, group)
        value, readable, failed = self.at(int(self.state["step"])), scores.total_valid, failed_rows(scores)
        if self.of == "band":
            low, high = value
            total = torch.where(scores.total >= high, 1.0, torch.where(scores.total < low, 0.0, scores.total))
        else:
            total = value[0] * scores.total
            if value[0] == 0:  # a reward that is switched off is 0 everywhere, whatever became of its part
                readable, failed = torch.ones_like(readable), torch.zeros_like(failed)
        return self.summarise([scores], total, readable, failed)


class Constraint(Summary):
    """l (r - theta): a demand on the batch's mean of r, with a multiplier l that learns ("Confronting Reward Model
    Overoptimization with Constrained RLHF").

    at_least: r - theta shall be >= 0 on average; at_most: theta - r; equal: r - theta shall be 0, so that a score past
    its proxy point is pushed *down* (exactly one of the three). A proxy point is the score beyond which the truth gets
    worse; `proxy_point` finds it. `update` moves xi against the batch's mean of that difference by one step of SGD with
    `rate` and `momentum`, xi held in [-bound, bound]: l = sigmoid(xi), or tanh(xi) for equal. squash "clamp": l is xi
    itself, held in [0,1]; then l falls to exactly 0 while the demand is met.

    First column: l (r - theta). Then `excess` (r - theta) and `multiplier` (l), by which the advantage rule
    "lagrangian" mixes advantages as the paper does; any other rule takes the first column as a score (which
    normalise_then_sum brings to the size of the others, whatever l).

    Departs from the paper: (1) xi is bounded, or it winds up while the policy cannot follow. (2) The step has no factor
    l'(xi), with which a multiplier near 0 or 1 hardly comes back. (3) The batch's scores stand for a learned value.
    """

    own = ("excess", "multiplier")

    def __init__(
        self,
        part: Reward,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        equal: float | None = None,
        squash: Squash = "sigmoid",
        rate: float = 0.01,
        momentum: float = 0.1,
        bound: float = 5.0,
        start: float = 0.0,
        name: str = "constraint",
    ) -> None:
        super().__init__([part], name)
        demands = {"at_least": at_least, "at_most": at_most, "equal": equal}
        made = [kind for kind, threshold in demands.items() if threshold is not None]
        if len(made) != 1:
            raise UsageError(f"reward {name!r} needs exactly one of at_least, at_most and equal, not {len(made)}")
        self.kind, self.threshold = made[0], number(name, made[0], demands[made[0]])
        self.squash = "tanh" if self.kind == "equal" else choice(name, "squash", squash, Squash)
        self.rate, self.momentum = number(name, "rate", rate, 0.0), number(name, "momentum", momentum, 0.0, 1.0)
        self.bound = number(name, "bound", bound, 1e-6)
        self.settings = (self.kind, self.threshold, self.squash, self.rate, self.momentum, self.bound, start)
        start = number(name, "start", start, -self.bound, self.bound)
        self.state = {"xi": torch.tensor(start, dtype=torch.float64), "velocity": torch.zeros((), dtype=torch.float64)}

    @property
    def multiplier(self) -> float:
        """l as it is now."""
        squash = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "clamp": lambda xi: xi.clamp(0, 1)}[self.squash]
        return float(squash(self.state["xi"]))

    def update(self, scores: Scores, step: int) -> None:
        excess = batch_mean(scores, "excess")
        if excess is not None:  # gradient descent on xi: while the demand is met, excess > 0, the weight falls
            velocity = self.momentum * self.state["velocity"] + excess
            low, high = (0.0, 1.0) if self.squash == "clamp" else (-self.bound, self.bound)
            self.state = {"xi": (self.state["xi"] - self.rate * velocity).clamp(low, high), "velocity": velocity}
        super().update(scores, step)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        (scores,) = self._score_parts(prompts, media, group)
        excess = (self.threshold - scores.total) if self.kind == "at_most" else (scores.total - self.threshold)
        multiplier = torch.full_like(excess, self.multiplier)
        own = [excess, multiplier]
        return self.summarise([scores], multiplier * excess, scores.total_valid, failed_rows(scores), own=own)


def proxy_point(proxies: Tensor, truth: Tensor) -> Tensor:
    """Where the truth is greatest, (K,): the thresholds for `Constraint`, from measurements along earlier trainings.

    proxies (N,K): mean score of each proxy reward at N checkpoints; truth (N,): that of a reward never optimised. A
    quadratic surface is fitted by least squares and its greatest value sought within the measured ranges.

    Departs from the paper: it also searches the thresholds by Nelder-Mead while training.

    Raises:
        UsageError: fewer measurements than the surface has coefficients, (K + 1) (K + 2) / 2.
    """
    from scipy.optimize import minimize

    x, y = proxies.double().numpy(), truth.double().numpy()
    count, width = x.shape
    if count < (width + 1) * (width + 2) // 2:
        raise UsageError(
            f"{count} measurements are too few to find {width} proxy points; make {(width + 1) * (width + 2) // 2}"
        )
    low, high = x.min(0), x.max(0)
    span = np.where(high > low, high - low, 1.0)
    upper = np.triu_indices(width)

    def terms(rows: Any) -> Any:
        """1, z and the products z_i z_j (i <= j), with z the proxies scaled to [0,1]."""
        z = (rows - low) / span
        return np.concatenate([np.ones((len(z), 1)), z, (z[:, :, None] * z[:, None, :])[:, upper[0], upper[1]]], 1)

    coefficients = np.linalg.lstsq(terms(x), y, rcond=None)[0]
    # The greatest value may lie inside the measured box or on its edge: several starts, each held within the box.
    starts = [x[int(y.argmax())], (low + high) / 2, low, high]
    bounds = list(zip(low, high, strict=True))

    def negative(v: Any) -> float:
        """Minus the surface's value at v (K,)."""
        return -float((terms(v[None]) @ coefficients)[0])

    found = [minimize(negative, start, bounds=bounds) for start in starts]
    return torch.from_numpy(min(found, key=lambda result: float(result.fun)).x).float()
