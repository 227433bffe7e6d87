"""One resumable training loop for every builder of the lab. Batches are a function of the step alone."""

import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from genalign.files.atomic import replace_file

log = logging.getLogger("genalign.lab")


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    state: Path,
    ema_decay: float = 0.999,
    weight_decay: float = 0.01,
    save_every: int = 200,
) -> None:
    """Train `model` with AdamW (warm-up, cosine to zero), then load its moving average into it.

    `loss_of(step)` must derive its batch from the step number, so that a killed run resumes on the same stream.
    `state` is the checkpoint (.safetensors: weights, moments, average, step), replaced atomically.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    average = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
    )
    first = _restore(state, parameters, average, optimizer) if state.exists() else 0
    started, shown = time.monotonic(), 0.0
    model.train()
    for step in range(first, steps):
        warm = min(1.0, (step + 1) / 100)
        rate = learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)
        shown = loss.item() if step == first else 0.98 * shown + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            pace = (time.monotonic() - started) / (step + 1 - first)
            log.info("step %d/%d loss %.4f %.3f s/step", step + 1, steps, shown, pace)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save(state, parameters, average, optimizer, step + 1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average[name])
    model.eval()


def compiled(model: nn.Module) -> Callable[..., Any]:
    """The model's forward pass, compiled where there is a C++ compiler: the same numbers in about 0.6 of the time."""
    return torch.compile(model.forward) if shutil.which("g++") else model.forward


def _save(
    state: Path,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        tensors[f"average.{name}"] = average[name].contiguous()
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if parameter in optimizer.state:
                tensors[f"{key}.{name}"] = optimizer.state[parameter][key].contiguous()
    state.parent.mkdir(parents=True, exist_ok=True)
    replace_file(state, save(tensors))


def _restore(
    state: Path,
    parameters: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    tensors = load_file(state)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            if f"step.{name}" in tensors:
                optimizer.state[parameter] = {k: tensors[f"{k}.{name}"] for k in ("exp_avg", "exp_avg_sq", "step")}
    return int(tensors["step"])
