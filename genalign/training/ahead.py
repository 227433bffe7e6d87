"""Sampling a step ahead (`train.staleness: 1`): a step is scored while the next one is sampled, before its update.

main      sample k+1 | wait for scores of k, then learn from k | sample k+2 | ...
scoring   ... of k                | ... of k+1                              | ...

The reward scores one step at a time, in the state that the scores of the step before left it in. So that a resumed run
draws what the unbroken one drew, a checkpoint holds the trained weights from before its last update too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from genalign.training import checkpoint as ck
from genalign.types import Experience, Policy, Scoring, Weights

Begin = Callable[[int], Generator[Scoring, None, Experience]]
Earlier = Mapping[str, Mapping[str, Tensor]]  # "policy" and "ema" -> name -> value
PART = "earlier"  # of a checkpoint


class Ahead:
    """The experience of each step, whose samples were drawn by the weights of before the last update.

    begin: the paused collection of a step (see `types.Pausing`). last: the step after which nothing is drawn.
    """

    def __init__(self, begin: Begin, last: int) -> None:
        self._begin, self._last = begin, last
        self._next: Drawn | None = None

    def draw(self, step: int) -> None:
        """Draw the samples of the first step of this process, and begin to score them."""
        self._next = Drawn(self._begin(step))
        self._next.score()

    def collect(self, step: int) -> Experience:
        """Draw the samples of the step after this one; then the experience of this one."""
        if self._next is None:
            self.draw(step)
        assert self._next is not None
        drawn, self._next = self._next, None
        try:
            if step < self._last:
                self._next = Drawn(self._begin(step + 1))
            return drawn.experience()
        finally:
            drawn.close()

    def score(self) -> None:
        """Begin to score what is drawn, now that the reward has learnt from the step before."""
        if self._next is not None:
            self._next.score()

    def close(self) -> None:
        """Drop what is drawn; a run that ends waits for one call of its reward at most."""
        if self._next is not None:
            self._next.close()


class Drawn:
    """The samples of one step, which are not scored before they are asked for."""

    def __init__(self, parts: Generator[Scoring, None, Experience]) -> None:
        self._parts = parts
        self._experience: Experience | None = None
        self._scoring = self._go_on()
        if self._scoring is not None:
            self._scoring.hold()
            self._go_on()

    def _go_on(self) -> Scoring | None:
        """To the next pause, or to the end."""
        try:
            return next(self._parts)
        except StopIteration as end:
            self._experience = end.value
            return None

    def score(self) -> None:
        if self._scoring is not None:
            self._scoring.release()

    def experience(self) -> Experience:
        while self._experience is None:
            self._go_on()
        return self._experience

    def close(self) -> None:
        self._parts.close()


# ---- the weights of before an update --------------------------------------------------------------------------------


def trained_weights(policy: Policy, averaged: bool) -> Earlier:
    """A copy of the trained weights, and of their average."""
    kept: dict[str, dict[str, Tensor]] = {}
    for which in _kinds(averaged):
        with policy.weights(which):
            kept[which] = {name: p.detach().clone() for name, p in policy.named_trainable().items()}
    return kept


@contextmanager
def lent(policy: Policy, weights: Earlier) -> Iterator[None]:
    """Within the context the policy has these trained weights; the global generators are left as they were."""
    present, random = trained_weights(policy, "ema" in weights), ck.random_state()
    _put(policy, weights)
    try:
        yield
    finally:
        _put(policy, present)
        ck.set_random_state(random)


@torch.no_grad()
def _put(policy: Policy, weights: Earlier) -> None:
    for which in _kinds("ema" in weights):
        with policy.weights(which):
            for name, parameter in policy.named_trainable().items():
                parameter.copy_(weights[which][name])


def _kinds(averaged: bool) -> tuple[Weights, ...]:
    return ("policy", "ema") if averaged else ("policy",)


def to_part(weights: Earlier) -> dict[str, Tensor]:
    """As one part of a checkpoint."""
    return {f"{which}/{name}": value for which, values in weights.items() for name, value in values.items()}


def from_part(part: Mapping[str, Tensor]) -> Earlier:
    """Undo `to_part`."""
    weights: dict[str, dict[str, Tensor]] = {}
    for key, value in part.items():
        which, _, name = key.partition("/")
        weights.setdefault(which, {})[name] = value
    return weights
