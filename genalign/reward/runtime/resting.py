"""A reward whose networks wait on the CPU until it scores, so that the device holds what samples, or what learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from genalign.reward.guard import prefetches_of
from genalign.reward.prefetch import Prefetch
from genalign.reward.wrapper import Wrapper
from genalign.types import Media, Prompt, Scores

CPU = torch.device("cpu")


class Resting(Wrapper):
    """The reward with its networks on the device during a call, and on the CPU at all other times; the same scores.

    Nothing is scored beside sampling but what another process does. After a call that keeps a graph to the pixels the
    networks stay until the next one, as the backward pass reads them. Networks of rewards that run in a process of
    their own are where that process has them.
    """

    def __init__(self, reward: Any) -> None:
        super().__init__(reward)
        self._home: list[tuple[nn.Module, torch.device]] = []  # where those that are away compute

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        for network, device in self._home:
            self.bring(network, device)
        self._home = []
        scores: Scores | None = None
        try:
            scores = self.reward(prompts, media, group)
            return scores
        finally:
            if scores is None or not (scores.values.requires_grad or scores.total.requires_grad):
                self._leave()

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        return tuple(each for each in prefetches_of(self.reward, modalities) if each.elsewhere)

    def _leave(self) -> None:
        for network in networks_of(self.reward):
            tensor = next(chain(network.parameters(), network.buffers()), None)
            if tensor is not None:
                self._home.append((network, tensor.device))
                self.send_away(network)

    def bring(self, network: nn.Module, device: torch.device) -> None:
        """See that a network is where it computes."""
        network.to(device)

    def send_away(self, network: nn.Module) -> None:
        """See that it is not."""
        network.to(CPU)


def networks_of(held: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The networks that a reward and its parts have loaded so far, each once."""
    seen = set() if seen is None else seen
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, nn.Module):
        yield held
    elif isinstance(held, Mapping):
        for value in held.values():
            yield from networks_of(value, seen)
    elif isinstance(held, list | tuple | set | frozenset):
        for value in held:
            yield from networks_of(value, seen)
    elif hasattr(held, "__dict__") and (type(held).__module__.startswith("genalign.") or hasattr(held, "aspects")):
        yield from networks_of(vars(held), seen)
