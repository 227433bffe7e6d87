"""Optimizers by name: how each is made, how its rate moves over a run, and its state as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from genalign.training.settings import TrainSettings
from genalign.types import UsageError

MOVING = ("d", "d_max", "d_numerator", "k")  # what Prodigy learns of a whole group: its step size, and what it is from
EIGHT_BIT = ("codes", "scale", "qmap")  # the tensors that torchao holds an 8-bit moment in


def build_optimizer(
    groups: Sequence[Mapping[str, Any]], named: Mapping[str, nn.Parameter], settings: TrainSettings
) -> Optimizer:
    """The optimizer that `train.optimizer` names, on a policy's groups of parameters.

    adamw: Loshchilov and Hutter (arXiv 1711.05101). adamw-8bit: the same with moments of 8 bits (Dettmers et al., arXiv
    2110.02861), where a parameter has 4096 values or more. muon: Jordan et al. (2024), the momentum of a matrix made
    orthogonal, scaled to AdamW's step (arXiv 2502.16982), so that its rates serve. prodigy: Mishchenko and Defazio
    (arXiv 2306.06101), which finds its rate itself; `train.learning_rate` multiplies it and is 1 as a rule.

    Raises:
        UsageError: its package is missing, or it cannot move a parameter of this policy.
    """
    rate, decay = settings.learning_rate, settings.weight_decay
    owned = [dict(group) for group in groups]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(owned, lr=rate, betas=settings.betas, weight_decay=decay)
    if settings.optimizer == "muon":
        return _muon(owned, named, settings)
    try:
        if settings.optimizer == "prodigy":
            from prodigyopt import Prodigy

            optimizer: Optimizer = Prodigy(owned, lr=rate, betas=settings.betas)
            for group in optimizer.param_groups:  # given to its constructor, a decay would be announced on the console
                group["weight_decay"] = decay
            return optimizer
        from torchao.optim import AdamW8bit

        return AdamW8bit(owned, lr=rate, betas=settings.betas, weight_decay=decay)
    except ImportError as error:
        extra = "optimizers" if settings.optimizer == "prodigy" else "eight-bit"
        raise UsageError(
            f"train.optimizer {settings.optimizer} needs a package that is missing ({error}); "
            f"pip install 'genalign[{extra}]'"
        ) from error


def _muon(groups: list[dict[str, Any]], named: Mapping[str, nn.Parameter], settings: TrainSettings) -> Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise UsageError(f"train.optimizer muon needs torch 2.9, not {torch.__version__}; upgrade, or take adamw")
    flat = next((name for name, parameter in named.items() if parameter.ndim != 2), None)
    if flat is not None:
        raise UsageError(
            f"train.optimizer muon moves matrices only, and {flat} has shape {tuple(named[flat].shape)}; "
            f"take adamw, or leave it out of policy.lora.targets"
        )
    from genalign.training.muon import Muon

    return Muon(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")


def share_of_rate(settings: TrainSettings, step: int) -> float:
    """What the learning rate of a step (from 0) is multiplied by, in (0,1].

    It rises linearly over `train.warmup` steps, then stays, or falls to 0 along a line or half a cosine: transformers'
    schedules at place step + 1 of steps + 1, so that neither the first nor the last step is one without a rate.
    """
    place, whole, warmup = step + 1, settings.steps + 1, settings.warmup
    if place < warmup:
        return place / warmup
    fallen = (place - warmup) / (whole - warmup)
    if settings.schedule == "linear":
        return 1 - fallen
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * fallen))
    return 1.0


def set_rate(optimizer: Optimizer, rates: Sequence[float], share: float) -> None:
    """Each group's rate becomes its own (of `rates`) times `share`."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):  # torchao compiles its step, and the rate is an input of that
            group["lr"].fill_(rate * share)
        else:
            group["lr"] = rate * share


# ---- state ----------------------------------------------------------------------------------------------------------


def optimizer_state(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Moments and counters as `parameter name/entry` -> tensor, and what is learnt of a group as `/number/entry`."""
    state: dict[str, Tensor] = {}
    for name, parameter in named.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if hasattr(value, "__tensor_flatten__"):
                state |= {f"{name}/{entry}/{part}": getattr(value, part) for part in EIGHT_BIT}
            else:
                state[f"{name}/{entry}"] = torch.as_tensor(value)
    for number, group in enumerate(optimizer.param_groups):
        for entry in MOVING:
            if entry in group:
                state[f"/{number}/{entry}"] = torch.tensor(group[entry], dtype=torch.float64)
    return state


def load_optimizer_state(optimizer: Optimizer, named: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Undo `optimizer_state`, in place; moments go to their parameter's device, counters stay on the CPU."""
    optimizer.state.clear()
    eight_bit: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, value in state.items():
        name, entry, *part = key.split("/")
        if not name:
            [number], entry = [int(entry)], part[0]
            optimizer.param_groups[number][entry] = type(optimizer.param_groups[number][entry])(value.item())
        elif part:
            eight_bit.setdefault((name, entry), {})[part[0]] = value.to(named[name].device)
        else:
            parameter = named[name]
            on_device = value.to(parameter.device) if value.shape == parameter.shape else value.clone()
            optimizer.state.setdefault(parameter, {})[entry] = on_device
    for (name, entry), parts in eight_bit.items():
        from torchao.optim.subclass_8bit import OptimState8bit

        signed = bool((parts["qmap"] < 0).any())
        optimizer.state.setdefault(named[name], {})[entry] = OptimState8bit(**parts, signed=signed)
