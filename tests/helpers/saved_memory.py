"""Levers of memory of models that write, and an update of such a model, to be compared with one without them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genalign.types import Trajectory

LEVERS: dict[str, dict[str, Any]] = {
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "phases": {"offload": "phases"},
    "blocks": {"offload": "blocks"},
    "blocks and checkpointing": {"offload": "blocks", "gradient_checkpointing": True},
}


def moved(of: Any) -> Any:
    """With an adapter that does something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer, parameter in of.named_trainable().items():
            if "lora_B" in layer:
                parameter.normal_(std=0.1, generator=generator)
    return of


def updated(of: Any, prompts: Any) -> tuple[Trajectory, Tensor, float]:
    """A rollout, the adapter's gradients of an update, and the largest log-ratio."""
    trajectory, worst = of.rollout(prompts, 2, seed=0), 0.0
    for rows, steps in trajectory.units():
        replayed = of.replay(trajectory, rows, steps, versus="reference")
        cell = torch.tensor(rows)[:, None], torch.tensor(steps)[None]
        off = (replayed.score.detach() - trajectory.logp[cell])[trajectory.mask[cell]]
        worst = max(worst, float(off.abs().max())) if off.numel() else worst
        total = replayed.score.sum() + (0 if replayed.kl is None else replayed.kl.sum())
        if total.requires_grad:  # in a turn of a diffusion language model in which something was written
            total.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in of.named_trainable().values()]
    return trajectory, torch.cat([grad.flatten() for grad in grads]), worst
