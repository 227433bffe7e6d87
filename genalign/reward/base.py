"""What every reward shares: defaults of the members it may leave out, a state of nothing, hashes and column names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from genalign.files.places import model_path
from genalign.media.medium import is_finite
from genalign.types import MODALITIES, Media, Prompt, Reward, Scores, Track, UsageError

if TYPE_CHECKING:
    from genalign.reward.prefetch import Prefetch

Scope = Literal["sample", "group", "batch"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
CUT = "truncated/"  # in Scores.info, before a head's name: whether it had to cut what it read of a row
METRIC = "metric/"  # in Scores.info, before the name of a number that `Runner.log` has the mean of


class ScoringError(Exception):
    """A scoring that went wrong, in words a user can act on; it becomes a mask and never ends the run."""


class RewardDefaults:
    """The members of `types.Reward` that a reward may leave out, each with its default. Every reward of ours has it.

    A class of a user's that has only the members of `types.CoreReward` gets them by `wrapper.with_defaults`.
    """

    needs: Any
    weights: tuple[float, ...] = ()
    aspect_needs: tuple[frozenset[str], ...] = ()
    waits: bool = False
    users: tuple[str, ...] = ()
    pairwise: bool = False
    parts: tuple[Reward, ...] = ()

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        return frozenset(self.needs - offered)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        """Work on media of these modalities that may be done in parts, without a bit of the scores changing. A reward
        that `waits` need not name its scoring (see `guard.prefetches_of`)."""
        return ()


class Stateless(RewardDefaults):
    """The three verbs of a reward that has no state of its own, and which rows it cannot read."""

    def faults(self, prompts: Sequence[Prompt], media: Media) -> list[str | None]:
        """Why a row cannot be scored, in words; None of the others. A head that needs more than `unreadable` adds it.

        (B,). `scores.readable_rows` keeps such rows from the head and marks them as failed.
        """
        return unreadable(media, self.needs, len(prompts))

    def update(self, scores: Scores, step: int) -> None:
        """Nothing to learn or to count."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Accepts an empty state.

        Raises:
            UsageError: any other.
        """
        if state:
            raise UsageError(
                f"{type(self).__name__} has no state, but was given {', '.join(state)}; check the checkpoint"
            )


class StepCounting(Stateless):
    """A reward that may read the number of the training step, which is then all the state that it has.

    steps: whether it reads it. step: updates made so far.
    """

    steps: bool = False
    step: int = 0

    def update(self, scores: Scores, step: int) -> None:
        self.step = step + 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"step": torch.tensor(self.step)} if self.steps else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if not self.steps:
            super().load_state_dict(state)
        elif "step" in state:
            self.step = int(state["step"])


def digest(*parts: Any) -> str:
    """A short hash of JSON-like parts; the same on every machine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_digest(module: nn.Module) -> str:
    """A short hash of every parameter and buffer, names included."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()[:16]


def first_missing(names: Iterable[str], known: Container[str]) -> str | None:
    """The first of `names` that is not `known`; None where all are."""
    return next((name for name in names if name not in known), None)


def first_repeated(names: Sequence[str]) -> str | None:
    """The first of `names` that stands there twice; None where none does."""
    return next((name for name in names if names.count(name) > 1), None)


def resolve_model(model: str | Path, folder: Path | None = None) -> str:
    """A model's folder, relative to `folder` or a shipped one, or a hub id as it is: see `model_path`."""
    return str(model_path(str(model), folder or Path()))


def column(part: Reward, aspect: str) -> str:
    """The name of a part's aspect inside a combination."""
    return aspect if aspect == part.name else f"{part.name}/{aspect}"


def aspect_weights(reward: Reward) -> Tensor:
    """(K,) fp32, what each aspect adds to the reward's total; 1 for each where `weights` is empty."""
    return torch.tensor(reward.weights or [1.0] * len(reward.aspects))


def needs_by_aspect(reward: Reward) -> tuple[frozenset[str], ...]:
    """(K,) what each aspect reads; all of `needs` where `aspect_needs` is empty."""
    return reward.aspect_needs or (reward.needs,) * len(reward.aspects)


def widest(scopes: Iterable[Scope]) -> Scope:
    """The scope that holds all others: sample < group < batch."""
    return max(scopes, key=SCOPES.index)


def texts(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.text for prompt in prompts]


def tensor_rows(track: Track) -> list[Tensor]:
    """The rows of a track of pictures, videos or sounds, one tensor each."""
    return [row for row in track if isinstance(row, Tensor)]


def unreadable(media: Media, needs: AbstractSet[str], rows: int) -> list[str | None]:
    """(rows,): why nobody can score a row, one of whose `needs` is empty or holds NaN or inf; None where it is sound.

    Silence, a single colour and an empty text are sound.
    """
    faults: list[str | None] = [None] * rows
    for name in sorted(set(needs) & set(MODALITIES) & set(media)):
        held = media[name].held
        if isinstance(held, Tensor) and held.numel() and is_finite(held):
            continue  # the usual case, at the price of one look
        for row, values in enumerate(held):
            if isinstance(values, Tensor) and not values.numel():
                faults[row] = f"the {name} is empty, of shape {tuple(values.shape)}"
            elif not is_finite(values):
                faults[row] = f"the {name} holds values that are not numbers"
    return faults


def image_batches(media: Media, size: int) -> list[Tensor]:
    """The images in fp32, (R,3,H,W) with R <= size; one by one where their shapes differ. Autograd is kept."""
    data = media["image"].data
    if isinstance(data, Tensor):
        return list(data.float().split(size))
    return [row[None].float() for row in tensor_rows(media["image"])]


def cut_info(name: str, cut: Sequence[bool]) -> dict[str, list[bool]]:
    """`Scores.info` of a head called `name` that reads texts: which rows it cut; `Runner.log` has their share."""
    return {CUT + name: list(cut)}
