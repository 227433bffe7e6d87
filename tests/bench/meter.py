"""What a policy is asked to compute, counted exactly: denoiser rows without a graph, with one, and taken backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from genalign.policy.diffusion import DiffusionPolicy


@dataclass
class Rows:
    """plain, graph: rows of forward passes without and with a graph. b: rows of backward passes. decoded, encoded: rows
    of latents and of pictures; read: texts."""

    plain: int = 0
    graph: int = 0
    b: int = 0
    decoded: int = 0
    encoded: int = 0
    read: int = 0

    @property
    def forward(self) -> int:
        return self.plain + self.graph


@contextmanager
def metered(policy: DiffusionPolicy) -> Iterator[Rows]:
    """Count within the context. A pass that is computed again in the backward pass is a forward pass once more."""
    rows, denoisers, pipeline = Rows(), policy._stage.denoisers, policy.pipeline
    real, calls = denoisers._forwards[denoisers.component], policy.calls()

    def forward(*args: Any, **kwargs: Any) -> Any:
        count = len(args[0] if args else next(iter(kwargs.values())))
        if not torch.is_grad_enabled():
            rows.plain += count
            return real(*args, **kwargs)
        rows.graph += count
        out = real(*args, **kwargs)
        (out if isinstance(out, torch.Tensor) else out[0]).register_hook(lambda _: went_back(count))
        return out

    def went_back(count: int) -> None:
        rows.b += count

    def look(name: str, module: torch.nn.Module, which: Callable[[Any, Any], Any]) -> Any:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            setattr(rows, name, getattr(rows, name) + len(which(args, kwargs)))

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def leading(args: Any, kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    hooks = [
        look("decoded", pipeline.vae.decoder, leading),
        look("encoded", pipeline.vae.encoder, leading),
        look("read", pipeline.text_encoder, leading),
    ]
    denoisers._forwards[denoisers.component] = forward
    try:
        yield rows
    finally:
        denoisers._forwards[denoisers.component] = real
        for hook in hooks:
            hook.remove()
    assert policy.calls() - calls == rows.forward


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turns(rounds: int, **works: Callable[[], Any]) -> dict[str, list[float]]:
    """CPU seconds of each work in each round: A B A B, so that a busy machine slows all alike."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            spent[name].append(seconds(work))
    return spent
