"""Where a sampler stands at each step, read off a sampling that is watched; neither policy nor family is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genalign.types import Differentiable, Prompt, UsageError

EXACT = 1e-3  # relative; rounding in half precision stays below


@dataclass(frozen=True)
class Level:
    """One step's x = a x0_hat + s eps_hat, and how it reads in the model's own output: x = p x0_hat + q out."""

    a: float
    s: float
    p: float
    q: float

    def eps(self, x: Tensor, x0: Tensor) -> Tensor:
        return (x - self.a * x0) / self.s

    def out(self, x: Tensor, x0: Tensor) -> Tensor:
        """The output that for which a sampler at x has the expected sample x0."""
        return (x - self.p * x0) / self.q


def watch(
    policy: Differentiable, prompt: Prompt, guidance: float | None = None, steps: int | None = None
) -> tuple[Level, ...]:
    """The levels of plain sampling, one a step, from one row of it without grad.

    Velocity, epsilon and v outputs differ by their coefficients at the noisiest step.

    Raises:
        UsageError: x is no combination of x0_hat and the output (the sampler clips), or an unknown one.
    """
    levels: list[Level] = []
    read = Reader()

    def look(step: int, x: Tensor, out: Tensor, x0: Tensor) -> Tensor:
        levels.append(read(x, out, x0))
        return out

    policy.generate_with_grad([prompt], [0], grad_steps=0, guidance=guidance, steps=steps, guide=look)
    return tuple(levels)


class Reader:
    """Levels of one sampling, read in its own steps: call it at each, from the noisiest on."""

    def __init__(self) -> None:
        self._level: Callable[[float, float], Level] | None = None

    def __call__(self, x: Tensor, out: Tensor, x0: Tensor) -> Level:
        """Of tensors (R,*L), by their first row; see `watch` for what it raises."""
        p, q = _coefficients(x[:1], out[:1], x0[:1])
        if self._level is None:
            self._level = level_of(p, q)
        return self._level(p, q)


def level_of(p: float, q: float) -> Callable[[float, float], Level]:
    """How a level follows from (p, q) at any step, given those of the noisiest one."""
    if _same(p, 1.0):
        # flow: p = 1, q = sigma <= 1; the variance-exploding form x0 + sigma eps goes beyond
        flow = q <= 1 + EXACT
        return lambda p, q: Level(1 - q if flow else 1.0, q, p, q)
    if _same(p * p + q * q, 1.0):  # epsilon
        return lambda p, q: Level(p, q, p, q)
    if _same(p * p, 1 + q * q):  # v
        return lambda p, q: Level(1 / p, q / p, p, q)
    raise UsageError(
        f"the model's output is neither velocity, epsilon nor v (x = {p:.4g} x0_hat + {q:.4g} out); "
        f"it cannot be steered, so take --search best-of-n"
    )


def _same(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= EXACT * max(1.0, wanted)


def _coefficients(x: Tensor, out: Tensor, x0: Tensor) -> tuple[float, float]:
    if not out.any():
        raise UsageError(
            "the model's output is 0 everywhere, as of weights that nobody trained, so its noise levels are not known; "
            "take a trained model"
        )
    columns = torch.stack([x0.double().flatten(), out.double().flatten()], 1).cpu()
    target = x.double().flatten().cpu()
    found = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0]
    if not (columns @ found - target).norm() <= EXACT * target.norm():
        raise UsageError(
            "the sampler's x0_hat is not linear in the model's output (it clips or thresholds), so it cannot be "
            "steered; turn that off in the scheduler, or take --search best-of-n"
        )
    return float(found[0]), float(found[1])
