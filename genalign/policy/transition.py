"""One Gaussian step kernel for every sampler: x' = A x0_hat + B eps_hat + S z, with a table (A, B, S) per step.

A path says where the model lives: x = a x0 + s eps, with (a, s) now and (a', s') after the step. Endpoint estimates are
linear in the model's output, so the mean is too: mu = X x + G out, and everything else (log-density, KL) follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genalign.policy.settings import Kernel
from genalign.types import GenalignError, UsageError

Prediction = Literal["velocity", "reversed_velocity", "epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Path:
    """Where T steps start and end: a, s, a_next, s_next (T,) float64, and what the model's output means.

    predicts: "velocity" is eps - x0 on a = 1 - s, and "reversed_velocity" x0 - eps there; "epsilon", "v_prediction" and
    "sample" are the variance-preserving ones. clip: x0_hat is clamped to [-clip, clip], or None. unit:
    std of eps, where a model was not trained with 1.
    """

    a: Tensor
    s: Tensor
    a_next: Tensor
    s_next: Tensor
    predicts: Prediction
    clip: float | None = None
    unit: float = 1.0

    def from_step(self, first: int) -> Path:
        """The path without the steps before `first`, where a pipeline enters its grid late."""
        a, s, a_next, s_next = (row[first:] for row in (self.a, self.s, self.a_next, self.s_next))
        return replace(self, a=a, s=s, a_next=a_next, s_next=s_next)

    @property
    def is_flow(self) -> bool:
        return self.predicts in ("velocity", "reversed_velocity")


def flow_path(sigmas: Tensor | Sequence[float], predicts: Prediction = "velocity") -> Path:
    """Rectified flow, x = (1 - sigma) x0 + sigma eps: sigmas (T+1,) from noisiest to cleanest."""
    sigma = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
    return Path(1 - sigma[:-1], sigma[:-1], 1 - sigma[1:], sigma[1:], predicts)


def preserving_path(
    abar: Tensor | Sequence[float],
    abar_next: Tensor | Sequence[float],
    predicts: Prediction = "epsilon",
    clip: float | None = None,
) -> Path:
    """Variance preserving, x = sqrt(abar) x0 + sqrt(1 - abar) eps: abar before and after each of T steps."""
    now = torch.as_tensor(abar, dtype=torch.float64, device="cpu")
    then = torch.as_tensor(abar_next, dtype=torch.float64, device="cpu")
    return Path(now.sqrt(), (1 - now).sqrt(), then.sqrt(), (1 - then).sqrt(), predicts, clip)


def kernel_rows(path: Path, kernel: Kernel, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """(A, B, S), each (T,) float64, as the papers write them; B may be negative where a kernel overdraws the noise.

    ddim: DDIM, eq. 16, with eta = noise, written for any path. flow-sde: Flow-GRPO, s = noise sqrt(sigma/(1-sigma)).
    dance: DanceGRPO, s = noise. cps: coefficients-preserving sampling, S = s' sin(noise pi/2). ode: S = 0.
    """
    if kernel in ("flow-sde", "dance") and not path.is_flow:
        raise UsageError(f"kernel {kernel!r} needs a flow-matching model; use ddim, cps or ode with this one")
    if kernel in ("ddim", "cps") and not 0 <= noise <= 1:
        raise UsageError(f"noise {noise} of kernel {kernel!r} is outside [0, 1]")
    if kernel == "ode":
        return path.a_next, path.s_next, torch.zeros_like(path.s)
    if kernel == "cps":
        std = path.s_next * math.sin(noise * math.pi / 2)
        return path.a_next, _leftover(path.s_next, std), std
    if kernel == "ddim":
        kept = path.a * path.s_next / (path.a_next * path.s).clamp_min(1e-300)
        std = noise * path.s_next * (1 - kept**2).clamp_min(0).sqrt()
        return path.a_next, _leftover(path.s_next, std), std
    sigma, step = path.s, path.s - path.s_next
    if kernel == "flow-sde":
        # sigma = 1 would divide by zero: as in the reference implementation the next sigma stands in below the line.
        below = torch.where(sigma >= 1, path.s_next[0], sigma)
        diffusion = noise * (sigma / (1 - below)).sqrt()
    else:
        diffusion = torch.full_like(sigma, noise)
    return path.a_next, path.s_next - diffusion**2 * step / (2 * sigma), diffusion * step.sqrt()


def _leftover(total: Tensor, std: Tensor) -> Tensor:
    return (total**2 - std**2).clamp_min(0).sqrt()


@dataclass(frozen=True)
class StepTable:
    """The kernel of T steps: A, B, S (T,) float64 on the CPU, S = 0 where a step is deterministic.

    Tensors it is given: x, x_next, out (R, *L) of any dtype; it computes in at least float32.

    block: side of the squares of latents that share their noise. Above 1 a step is stochastic in the block means
    alone, each of which gets the noise that white noise would give it, and follows the ODE in everything else; only
    block means are scored. A latent of side n then has (n / block)^2 scored dims a channel (and frame) instead of n^2:
    the policy gradient loses that much variance, and what layout, count and colour depend on is still explored.
    """

    path: Path
    A: Tensor
    B: Tensor
    S: Tensor
    block: int = 1

    def __post_init__(self) -> None:
        for name in ("A", "B", "S"):
            row = getattr(self, name)
            bad = ~torch.isfinite(row) | (row < 0 if name != "A" else torch.zeros_like(row, dtype=torch.bool))
            if bad.any():
                step = int(bad.nonzero()[0])
                raise GenalignError(
                    f"step {step} of {len(row)} has {name} = {float(row[step]):.4g}; lower sampler.noise or use cps"
                )

    def __len__(self) -> int:
        return len(self.S)

    @property
    def stochastic(self) -> list[int]:
        """Steps that add noise and so have a log-density."""
        return [i for i, std in enumerate(self.S.tolist()) if std > 0]

    def window(self, start: int, width: int) -> StepTable:
        """The same table with every step outside [start, start + width) made deterministic."""
        inside = torch.zeros_like(self.S, dtype=torch.bool)
        inside[start : start + width] = True
        return self.where(inside)

    def where(self, inside: Tensor) -> StepTable:
        """The same table with every step that is not `inside` (T,) made deterministic."""
        return replace(
            self,
            A=torch.where(inside, self.A, self.path.a_next),
            B=torch.where(inside, self.B, self.path.s_next),
            S=torch.where(inside, self.S, 0.0),
        )

    def part(self, number: int) -> StepTable:
        """Its own for each of the parts that a turn moves (see tables.py); one for all."""
        return self

    def over(self, numbers: Sequence[int]) -> StepTable:
        return self

    def endpoints(self, i: int, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) of step i."""
        x, out = _wide(x), _wide(out)
        a, s = float(self.path.a[i]), float(self.path.s[i])
        match self.path.predicts:
            case "velocity":
                x0, eps = x - s * out, x + a * out
            case "reversed_velocity":
                x0, eps = x + s * out, x - a * out
            case "epsilon":
                x0, eps = (x - s * out) / a, out
            case "v_prediction":
                x0, eps = a * x - s * out, a * out + s * x
            case "sample":
                x0, eps = out, (x - a * out) / s
        return (x0 if self.path.clip is None else x0.clamp(-self.path.clip, self.path.clip)), eps

    def mean(self, i: int, x: Tensor, out: Tensor) -> Tensor:
        """mu of step i, in float32 or wider."""
        x0, eps = self.endpoints(i, x, out)
        mean = float(self.A[i]) * x0 + float(self.B[i]) * eps
        if self.block == 1 or self.S[i] == 0:
            return mean
        ode = float(self.path.a_next[i]) * x0 + float(self.path.s_next[i]) * eps
        return ode + self._explored(mean - ode)

    def scored(self, x: Tensor) -> int:
        """How many dims of one latent (*L) a step scores."""
        return x.numel() // self.block**2

    def _explored(self, x: Tensor) -> Tensor:
        """The part of x (R, *L) that steps explore: all of it, or its block means, spread back."""
        if self.block == 1:
            return x
        if x.dim() not in (4, 5) or x.shape[-2] % self.block or x.shape[-1] % self.block:
            raise UsageError(
                f"policy.sampler.noise_block {self.block} needs latents (channels, height, width), or of frames, whose "
                f"sides it divides, not {tuple(x.shape[1:])}; set it to 1"
            )
        planes = x.flatten(1, -3)  # each channel of each frame by itself
        spread = F.interpolate(F.avg_pool2d(planes, self.block), scale_factor=self.block, mode="nearest")
        return spread.reshape(x.shape)

    def _std(self, i: int) -> float:
        return float(self.S[i]) * self.path.unit

    def step(self, i: int, mean: Tensor, noise: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x' = mu + S z, rounded to the dtype it is stored in: only then may it be scored."""
        moved = mean if noise is None else mean + self._std(i) * self._explored(noise)
        return moved.to(dtype)

    def logp(self, i: int, x_next: Tensor, mean: Tensor) -> Tensor:
        """log N(x'; mu, S^2) plus the entropy of the step, summed over latent dims: (R,) nats.

        x' is a constant, gradients flow through mu. The entropy depends on no weight, so ratios and gradients are those
        of the density; with it the sum stays near 0, where float32 resolves 1e-5 nats at 65,536 dims (without, 1e-2).
        """
        z = self._explored(_wide(x_next.detach()) - mean) / self._std(i)
        return (0.5 / self.block**2 - 0.5 * z.square()).flatten(1).sum(1)

    def kl(self, i: int, mean: Tensor, other: Tensor) -> Tensor:
        """KL between two steps of equal std, |mu - mu_other|^2 / (2 S^2), summed over latent dims: (R,) nats."""
        return self._explored(mean - other).square().flatten(1).sum(1) / (2 * self._std(i) ** 2)


def step_table(path: Path, kernel: Kernel, noise: float, block: int = 1) -> StepTable:
    """The table of a kernel.

    Departs from the papers: a step whose B would be negative (it injects more noise than the schedule has left, as
    Flow-SDE does on its last steps; that residue is visible grain) is taken as an ODE step, S = 0.

    Raises: UsageError where the kernel does not fit the path; GenalignError where a coefficient is not finite.
    """
    rows = kernel_rows(path, kernel, noise)
    overdrawn = rows[1] < 0
    a, b, s = (torch.where(overdrawn, ode, row) for ode, row in zip(kernel_rows(path, "ode", 0.0), rows, strict=True))
    return StepTable(path, a, b, s, block)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
