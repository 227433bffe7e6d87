"""What a run carries from step to step: made at its start, saved in a checkpoint, and restored from one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from genalign.ranks import gather, rank
from genalign.training import checkpoint as ck
from genalign.training.ahead import PART, Earlier, from_part, to_part
from genalign.training.backend import Backend
from genalign.training.settings import TrainSettings
from genalign.training.sharded import BACKENDS
from genalign.types import Policy, Reward, UsageError


@runtime_checkable
class Stateful(Protocol):
    """A method that learns something itself, such as a value network."""

    def state_dict(self) -> Mapping[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Progress:
    """What a run carries from step to step, and all that a checkpoint must hold.

    method: the one that trains, where it is Stateful. method_state: what a checkpoint held of it, until there is one.
    skipped: updates in a row that were left out, up to now. saved: the step of the last checkpoint that was written.
    earlier: with `train.staleness` 1, the trained weights from before the last update.
    """

    policy: Policy
    reward: Reward | None
    backend: Backend
    settings: TrainSettings
    step: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)
    method: Stateful | None = None
    method_state: Mapping[str, Tensor] = field(default_factory=dict)
    skipped: int = 0
    saved: int = -1
    earlier: Earlier = field(default_factory=dict)


def start(
    policy: Policy, reward: Reward | None, settings: TrainSettings, digests: Mapping[str, str] | None = None
) -> Progress:
    """Progress at step 0. `digests`: name -> hash of what may not change under a resumed run (data, reward)."""
    backend = BACKENDS[settings.backend]()
    backend.prepare(policy, settings)
    return Progress(policy, reward, backend, settings, digests=dict(digests or {}))


def save(progress: Progress, run: Path) -> None:
    """Write a checkpoint (rank 0) with the random states of every rank."""
    states = _random_states()
    parts: dict[str, Mapping[str, Tensor]] = {**progress.backend.state(averaged=progress.settings.ema is not None)}
    if rank() != 0:
        return
    parts["random"] = states
    if progress.earlier:
        parts[PART] = to_part(progress.earlier)
    parts["reward"] = progress.reward.state_dict() if progress.reward is not None else {}
    if progress.method is not None:
        parts["method"] = progress.method.state_dict()
    ck.save_checkpoint(run, progress.step, parts, {"digests": progress.digests}, progress.settings.keep_checkpoints)


def save_unsaved(progress: Progress, run: Path) -> None:
    """The same, where the last step has no checkpoint yet."""
    if progress.saved != progress.step:
        save(progress, run)


def restore(progress: Progress, saved: ck.Checkpoint) -> None:
    """Put a checkpoint back, in place.

    Raises:
        UsageError: data or reward are not what they were. GenalignError: it belongs to a model with other adapters.
    """
    for what, digest in progress.digests.items():
        if saved.state["digests"].get(what, digest) != digest:
            raise UsageError(f"{what} changed since {saved.folder} was written; put it back or start a new run")
    progress.backend.load_state(saved.parts, saved.folder)
    if progress.reward is not None:
        progress.reward.load_state_dict(saved.parts["reward"])
    progress.method_state = saved.parts.get("method", {})
    progress.earlier = from_part(saved.parts.get(PART, {}))
    ck.set_random_state(_random_state_of_rank(saved.parts["random"]))
    progress.step = saved.step


def _random_states() -> dict[str, Tensor]:
    """`rank/name` -> state, of all ranks, on every rank."""
    states = {}
    for name, state in sorted(ck.random_state().items()):
        for r, of_rank in enumerate(gather(state[None])):  # (world, ...)
            states[f"{r}/{name}"] = of_rank.clone()
    return states


def _random_state_of_rank(states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's among those that `_random_states` kept; where fewer ranks wrote them, another rank's."""
    writers = 1 + max(int(name.partition("/")[0]) for name in states)
    mine = f"{rank() % writers}/"
    return {name.removeprefix(mine): state for name, state in states.items() if name.startswith(mine)}
