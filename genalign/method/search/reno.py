"""ReNO: gradient ascent on the noise that sampling starts from, generator and rewards frozen."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from genalign.method.search.base import Inference, InferenceSettings, SearchState, candidate_seed
from genalign.types import GenalignError, Method


class RenoSettings(InferenceSettings):
    """ReNO (arXiv 2406.04312): how the noise of a one-step or few-step generator moves."""

    presets: ClassVar = {"reno": {}}

    learning_rate: float = Field(5.0, gt=0)
    """Of SGD with Nesterov momentum, on noise whose norm is about sqrt(D)."""
    momentum: float = Field(0.9, gt=0, lt=1)
    """Of SGD."""
    max_grad_norm: float = Field(0.1, gt=0)
    """Each candidate's gradient is clipped to this norm, whatever its neighbours in the batch do."""
    regularisation: float = Field(0.01, ge=0)
    """Weight of minus the log-density of the noise's norm, beside the reward's total."""
    checkpoint: bool = False
    """Compute the denoiser again in the backward pass: memory that does not grow with the steps, for more time."""

    def build(self, folder: Path) -> Method:
        return Reno(self)


def norm_penalty(noise: Tensor) -> Tensor:
    """Minus the log-density of |x| under x ~ N(0, I), up to a constant: |x|^2/2 - (D-1) log|x|, (R,) of noise (R,*L).

    Least at |x| = sqrt(D-1) (arXiv 2306.08687).
    """
    square = noise.flatten(1).square().sum(1)
    return square / 2 - (noise[0].numel() - 1) * square.log() / 2


class Reno(Inference):
    """Minimise -reward(sample(x)) + regularisation * K(x) over the noise x; the iterate of best reward is returned.

    Iterate 0 is plain sampling. The reward is one reward or a weighted `sum` of several. The sampler is deterministic
    at given x, and text is encoded once, by policy and rewards alike.

    Departs from the paper's code: (1) x and its momentum are an fp32 leaf, cast where the model needs it. (2) Clipping
    is per candidate, so that a batch of noises gives what they give one by one. (3) A candidate whose reward cannot be
    read moves by K alone and is never the best. (4) The last iterate is only evaluated; 50 iterations cost 50 forward
    and 49 backward passes.
    """

    def __init__(self, settings: RenoSettings) -> None:
        self.settings, self.name = settings, settings.name
        self.needs = frozenset({"reward", "reward_grad"})

    def _search(self, state: SearchState) -> None:
        s, seeds = self.settings, list(state.seeds)  # state.seeds become those of the winners
        rows = [row for row in range(len(state.prompts)) for _ in range(s.group)]
        prompts = [state.prompts[row] for row in rows]
        drawn = [candidate_seed(seeds[row], state.prompts[row], k % s.group) for k, row in enumerate(rows)]
        start = state.differentiable.initial_noise(prompts, drawn)  # (R*group, *L)
        noise = start.to(torch.promote_types(start.dtype, torch.float32)).clone().requires_grad_()
        optimizer = torch.optim.SGD([noise], lr=s.learning_rate, momentum=s.momentum, nesterov=True)
        another = (4.0 if s.checkpoint else 3.0) * s.group  # evaluations: a backward pass, and the next iterate
        goes_on = s.budget >= s.group + another
        while True:
            with torch.set_grad_enabled(goes_on), state.paying():
                media = state.differentiable.generate_with_grad(
                    prompts,
                    noise=noise if goes_on else noise.detach(),
                    grad_steps=None if goes_on else 0,
                    guidance=state.guidance,
                    steps=state.steps,
                    checkpoint=s.checkpoint,
                )
            total = state.score(media, rows, drawn)
            state.plain = state.plain or state.spent.units / len(rows)
            if not goes_on:
                return
            self._move(state, noise, total, optimizer)
            goes_on = state.left(s.budget - s.group, another * state.plain) > 0

    def _move(self, state: SearchState, noise: Tensor, total: Tensor, optimizer: torch.optim.Optimizer) -> None:
        readable = torch.isfinite(total)
        if readable.any() and not total.requires_grad:
            raise GenalignError(
                f"reward {state.reward.name!r} gives no gradient to the pixels, though it is declared "
                f"differentiable; mend it, or take --search best-of-n"
            )
        loss = self.settings.regularisation * norm_penalty(noise).sum() - torch.where(readable, total, 0.0).sum()
        with state.paying():
            (slope,) = torch.autograd.grad(loss, noise)  # into the noise alone: adapters keep no gradient
        state.spent.backward += round(len(total) * state.plain)
        # Clipped candidate by candidate, so that neighbours in the batch change nothing; an unreadable one stays.
        norm = slope.flatten(1).norm(dim=1)
        shrink = (self.settings.max_grad_norm / norm).clamp(max=1.0)
        sound = torch.isfinite(norm) & (norm > 0)
        shape = (-1, *[1] * (noise.dim() - 1))
        noise.grad = torch.where(sound.view(shape), slope * shrink.view(shape), 0.0)
        optimizer.step()
