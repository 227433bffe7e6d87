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
from genalign.training.muon import Muon

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
    muon: float = 0.0,
) -> None:
    """Train `model` with AdamW (warm-up, cosine to zero), then load its moving average into it.

    `loss_of(step)` must derive its batch from the step number, so that a killed run resumes on the same stream.
    `state` is the checkpoint (.safetensors: weights, moments, average, step), replaced atomically.
    muon: the learning rate of matrices and convolutions by Muon (Jordan et al. 2024; torch's), a kernel as a matrix of
    its outputs; AdamW takes the rest. An autoencoder of a few channels leaves the plateau of blank pictures so, which
    AdamW alone does not leave in 4,000 steps. 0: AdamW for all.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    average = {n: p.detach().clone() for n, p in parameters.items()}
    matrices = {n: nn.Parameter(p.detach().flatten(1)) for n, p in parameters.items() if muon and is_matrix(p)}
    stepped = {**parameters, **matrices}  # a matrix is a view of its parameter
    others = [p for n, p in parameters.items() if n not in matrices]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    ]
    if matrices:
        optimizers.append(Muon(matrices.values(), lr=muon, weight_decay=weight_decay))
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    first = _restore(state, parameters, average, stepped, optimizers) if state.exists() else 0
    started, shown = time.monotonic(), 0.0
    model.train()
    for step in range(first, steps):
        warm = min(1.0, (step + 1) / 100)
        for group, rate in groups:
            group["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        loss = loss_of(step)
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for name, matrix in matrices.items():
            gradient = parameters[name].grad
            matrix.grad = None if gradient is None else gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)
        shown = loss.item() if step == first else 0.98 * shown + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            pace = (time.monotonic() - started) / (step + 1 - first)
            log.info("step %d/%d loss %.4f %.3f s/step", step + 1, steps, shown, pace)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            _save(state, parameters, average, stepped, optimizers, step + 1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average[name])
    model.eval()


def compiled(model: nn.Module) -> Callable[..., Any]:
    """The model's forward pass, compiled where there is a C++ compiler: the same numbers in about 0.6 of the time."""
    return torch.compile(model.forward) if shutil.which("g++") else model.forward


def is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix, or a kernel that is one with a row for each output, of four rows and columns."""
    return parameter.ndim >= 2 and min(len(parameter), parameter.numel() // len(parameter)) >= 4


Tensors = dict[str, Tensor]
Parameters = dict[str, nn.Parameter]
STATE = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")  # of AdamW and of Muon


def _save(
    state: Path,
    parameters: Parameters,
    average: Tensors,
    stepped: Parameters,
    optimizers: list[torch.optim.Optimizer],
    step: int,
) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, parameter in parameters.items():
        tensors[f"weight.{name}"] = parameter.detach().contiguous()
        tensors[f"average.{name}"] = average[name].contiguous()
        for optimizer in optimizers:
            for key, value in optimizer.state.get(stepped[name], {}).items():
                tensors[f"{key}.{name}"] = value.contiguous()
    state.parent.mkdir(parents=True, exist_ok=True)
    replace_file(state, save(tensors))


def _restore(
    state: Path,
    parameters: Parameters,
    average: Tensors,
    stepped: Parameters,
    optimizers: list[torch.optim.Optimizer],
) -> int:
    tensors = load_file(state)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            average[name].copy_(tensors[f"average.{name}"])
            held = {key: tensors[f"{key}.{name}"] for key in STATE if f"{key}.{name}" in tensors}
            for optimizer in optimizers:
                if held and any(stepped[name] is p for group in optimizer.param_groups for p in group["params"]):
                    optimizer.state[stepped[name]] = held
    return int(tensors["step"])
