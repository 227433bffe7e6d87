"""How an update reaches the weights: the optimizer, the reduction over ranks, clipping, and the state of all of it.

The loop knows a back end by its protocol only. `Replicated` is what there is: every rank holds the whole adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from genalign.ranks import all_sum, rank, world
from genalign.training.optimizers import build_optimizer, load_optimizer_state, optimizer_state, set_rate
from genalign.training.selfcheck import check_equal
from genalign.training.settings import TrainSettings
from genalign.types import GenalignError, Policy

log = logging.getLogger("genalign")

Parts = Mapping[str, Mapping[str, Tensor]]  # part of a checkpoint -> name -> tensor


class Backend(Protocol):
    """What the loop does with a policy's trainable parameters.

    Every member but `forget` is called by all ranks, in the same order, so that each may hold collectives. Nothing here
    promises that ranks hold the same tensors: a back end may keep a shard on each.
    """

    def prepare(self, policy: Policy, settings: TrainSettings) -> None:
        """Take over the policy's networks, in place, and make the optimizer; once, before the first rollout."""
        ...

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of a scalar loss that is divided by the GLOBAL number of rows: ranks are to be summed.

        last: of its update, after which a back end may reduce. A loss without a graph adds nothing.
        """
        ...

    def reduce_and_clip(self, max_norm: float) -> float:
        """Sum the gradients over ranks and scale them to a global norm of at most `max_norm`; the norm before."""
        ...

    def forget(self) -> None:
        """Drop the gradients of an update that begins anew, or that is left out. Not every rank calls this at once."""
        ...

    def step(self, share: float = 1.0) -> None:
        """Move the parameters along their gradients, at this share of their learning rate, and forget these."""
        ...

    def check(self, what: Literal["adapters", "gradients"]) -> None:
        """See to it that ranks hold what they must in common.

        Raises:
            GenalignError: they do not.
        """
        ...

    def state(self, averaged: bool) -> dict[str, dict[str, Tensor]]:
        """Whole tensors, whatever a rank holds of them: `adapter`, `optimizer` and (averaged) `ema`, the same names and
        shapes under every back end, so that a run resumes on other hardware."""
        ...

    def load_state(self, parts: Parts, folder: Path) -> None:
        """Undo `state`, in place; `folder` is what errors name.

        Raises:
            GenalignError: the parts belong to a model with other adapters.
        """
        ...


class Replicated:
    """One process, or several that each hold the whole adapter: one explicit all-reduce an update.

    Not DDP, since methods call a policy's networks from inside a pipeline, and some of them twice before a backward.
    """

    policy: Policy
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    rates: list[float]  # of each group of parameters, before a schedule

    def prepare(self, policy: Policy, settings: TrainSettings) -> None:
        self.policy = policy
        self.parameters = list(policy.named_trainable().values())
        self.optimizer = build_optimizer(policy.parameter_groups(), policy.named_trainable(), settings)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def backward(self, loss: Tensor, last: bool) -> None:
        if loss.requires_grad:
            loss.backward()

    def reduce_and_clip(self, max_norm: float) -> float:
        if world() > 1:
            self._sum_over_ranks()
        return torch.nn.utils.clip_grad_norm_(self.parameters, max_norm).item()

    def _sum_over_ranks(self) -> None:
        """In one message: a parameter that has no gradient here may have one on another rank."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        total = all_sum(torch.cat([grad.reshape(-1) for grad in grads]))
        for parameter, grad in zip(self.parameters, total.split([p.numel() for p in self.parameters]), strict=True):
            parameter.grad = grad.view_as(parameter).clone()

    def forget(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, share: float = 1.0) -> None:
        set_rate(self.optimizer, self.rates, share)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def check(self, what: Literal["adapters", "gradients"]) -> None:
        if what == "adapters":
            check_equal(self.parameters, "adapters at the start")
            return
        check_equal([parameter.grad for parameter in self.parameters], "gradients after the sum over ranks")
        if rank() == 0:
            warn_of_dead_adapters(self.policy.named_trainable())

    def state(self, averaged: bool) -> dict[str, dict[str, Tensor]]:
        named = self.policy.named_trainable()
        parts = {
            "adapter": {name: parameter.detach() for name, parameter in named.items()},
            "optimizer": optimizer_state(self.optimizer, named),
        }
        if averaged:
            with self.policy.weights("ema"):  # a copy, since the average is only lent to the parameters in here
                parts["ema"] = {name: p.detach().clone() for name, p in self.policy.named_trainable().items()}
        return parts

    def load_state(self, parts: Parts, folder: Path) -> None:
        named = self.policy.named_trainable()
        _copy(named, parts["adapter"], folder)
        if "ema" in parts:
            with self.policy.weights("ema"):
                _copy(self.policy.named_trainable(), parts["ema"], folder)
        load_optimizer_state(self.optimizer, named, parts["optimizer"])


def warn_of_dead_adapters(named: Mapping[str, nn.Parameter]) -> None:
    """Say which adapted layers took no part in an update that moves others: their code path reads only the base.

    Of a LoRA pair, B has a gradient from the first update on; A has none as long as B is zero. A few dead layers are
    usual (the text queries of a last block lead nowhere), so they are named from a tenth of all on.
    """
    halves = {name: parameter.grad for name, parameter in named.items() if ".lora_B." in name}
    dead = [name for name, grad in halves.items() if grad is None or not bool(grad.any())]
    if len(halves) / 10 < len(dead) < len(halves):
        log.warning(
            "%d of %d adapted layers got no gradient, so they are not trained (%s ...); the model computes them "
            "without adapter, or not at all: leave them out of policy.lora.targets",
            len(dead),
            len(halves),
            dead[0].partition(".lora_B.")[0],
        )


@torch.no_grad()
def _copy(named: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor], folder: Path) -> None:
    if set(named) != set(saved) or any(named[name].shape != saved[name].shape for name in named):
        raise GenalignError(f"the adapter in {folder} has other layers than this policy; resume with its own recipe")
    for name, parameter in named.items():
        parameter.copy_(saved[name])
