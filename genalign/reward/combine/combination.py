"""What all rewards made of rewards share: their parts' names, needs and state, and the table of their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from genalign.reward.base import (
    RewardDefaults,
    Scope,
    aspect_weights,
    column,
    digest,
    first_missing,
    first_repeated,
    widest,
)
from genalign.reward.combine.columns import confidences, least_confidence, side_by_side
from genalign.reward.guard import guarded, prefetches_of
from genalign.reward.needs import reads_another_modality
from genalign.reward.prefetch import Prefetch
from genalign.reward.scores import all_abstained, combine
from genalign.reward.wrapper import with_defaults
from genalign.types import CoreReward, Media, Prompt, Reward, Scores, UsageError, nearest


class Combination(RewardDefaults):
    """Names, needs and state of several rewards taken together; a part that reads another modality abstains."""

    name: str

    def __init__(self, parts: Sequence[CoreReward]) -> None:
        self.parts = tuple(with_defaults(part) for part in parts)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        usable = [not reads_another_modality(part, offered) for part in self.parts]
        # Where the others can do without a part of another modality, that part abstains: nothing of it is lacking.
        counted = usable if self.can_score(usable) else [True] * len(usable)
        lacking = self.needs.difference(*(part.needs for part in self.parts)) - offered  # of the combination's own
        for part, counts in zip(self.parts, counted, strict=True):
            if counts:
                lacking |= part.lacks(offered)
        return lacking

    def can_score(self, usable: Sequence[bool]) -> bool:
        """Whether it gives any score where the parts that are not `usable`, (P,), abstain from every row."""
        return all(usable)

    @property
    def columns(self) -> tuple[str, ...]:
        """The parts' aspects, one after the other.

        Raises:
            UsageError: two of them have the same name.
        """
        names: list[str] = []
        for part in self.parts:
            names += [column(part, aspect) for aspect in part.aspects]
        twice = first_repeated(names)
        if twice is not None:
            raise UsageError(f"two parts of reward {self.name!r} are called {twice!r}; give one of them another name")
        return tuple(names)

    @property
    def differentiable(self) -> bool:
        return all(part.differentiable for part in self.parts)

    def update(self, scores: Scores, step: int) -> None:
        """Each part sees its own columns."""
        for part in self.parts:
            mine = [scores.names.index(column(part, aspect)) for aspect in part.aspects]
            values, valid, failed = scores.values[:, mine], scores.valid[:, mine], scores.failed[:, mine]
            weights = aspect_weights(part)
            total, readable = combine(values, valid, failed, weights, None, "zero_advantage")
            confidence = None if scores.confidence is None else scores.confidence[:, mine]
            part.update(Scores(part.aspects, values, valid, failed, total, readable, weights, confidence), step)

    def state_dict(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for part in self.parts:
            state |= {f"{part.name}.{key}": value for key, value in part.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for part in self.parts:
            prefix = f"{part.name}."
            part.load_state_dict({key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)})

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        """Those of its parts, which `_score_parts` calls on the rows as they are."""
        found: list[Prefetch] = []
        for part in self.parts:
            if not reads_another_modality(part, modalities):
                found += prefetches_of(part, modalities)
        return tuple(found)

    def _score_parts(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> list[Scores]:
        """The scores of each part, on the CPU; a part that reads another modality is not called."""
        modalities = frozenset(media)
        scores = []
        for part in self.parts:
            if reads_another_modality(part, modalities):
                scores.append(all_abstained(part, len(prompts)))
            else:
                scores.append(guarded(part, prompts, media, group))
        return scores


class Summary(Combination):
    """A combination with one number as its result: its first column, which has its name. The rest is for the log.

    own: columns of its own between the first and the parts', which its `update` may read (a part's total, a
    multiplier). settings: what distinguishes two rewards of one class, beside name and parts; hashed into `version`.
    siblings: True where rows are compared in groups. state: its own tensors, which `update` alone may replace.
    """

    own: tuple[str, ...] = ()
    settings: tuple[Any, ...] = ()
    siblings = False

    def __init__(self, parts: Sequence[Reward], name: str) -> None:
        super().__init__(parts)
        self.name = name
        self.state: dict[str, Tensor] = {}

    @property
    def aspects(self) -> tuple[str, ...]:
        names = (self.name, *self.own, *self.columns)
        twice = first_repeated(names)
        if twice is not None:
            raise UsageError(f"reward {self.name!r} has two columns called {twice!r}; give it or its part another name")
        return names

    @property
    def weights(self) -> tuple[float, ...]:  # type: ignore[override]
        return (1.0, *(0.0 for _ in (*self.own, *self.columns)))

    @property
    def looks_at(self) -> Scope:
        return widest(["group" if self.siblings else "sample", *(part.looks_at for part in self.parts)])

    @property
    def version(self) -> str:
        return digest(type(self).__name__.lower(), self.name, self.settings, [part.version for part in self.parts])

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.state, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        absent = first_missing(self.state, state)
        if absent is not None:
            raise UsageError(f"the state of reward {self.name!r} lacks {absent!r}; the checkpoint is of another reward")
        self.state = {key: state[key] for key in self.state}
        super().load_state_dict(state)

    def summarise(
        self,
        scores: Sequence[Scores],
        total: Tensor,
        readable: Tensor,
        failed: Tensor,
        own: Sequence[Tensor] = (),
        confidence: Tensor | None = None,
        std: Tensor | None = None,
    ) -> Scores:
        """Total, own columns and the parts' columns as one table, (B, 1 + own + parts).

        scores: of the parts. total, readable (whether it is valid), failed, confidence and std are (B,), as is each
        column of `own`. confidence: None takes the least of the parts that did not abstain, where any part has one.
        std: None, 0 beside the parts' own.
        """
        total = torch.where(readable, total, 0.0)
        parts = side_by_side(self.columns, scores)
        # Confidence and std are optional: a table has the whole column block as soon as the total or any part has one,
        # and then a part without confidence counts as sure (1 where valid), one without std as exact (0).
        if confidence is None:
            confidence = least_confidence(scores, torch.stack([part.total_valid for part in scores], 1))
        table_confidence = None
        if confidence is not None:
            first = torch.where(readable, confidence, 0.0)[:, None]
            certain = readable[:, None].float().expand(-1, len(own))
            table_confidence = torch.cat([first, certain, confidences(parts)], 1)
        stds = None
        if std is not None or parts.std is not None:
            exact = torch.zeros_like(total)
            mine = torch.stack([exact if std is None else std, *(exact for _ in own)], 1)
            stds = torch.cat([mine, torch.zeros_like(parts.values) if parts.std is None else parts.std], 1)
        # The summary's own columns stand and fall with its total: one mask for all of them.
        head = torch.stack([total, *(torch.where(readable, column, 0.0) for column in own)], 1)
        width = head.shape[1]
        return replace(
            parts,
            names=self.aspects,
            values=torch.cat([head, parts.values], 1),
            valid=torch.cat([readable[:, None].expand(-1, width), parts.valid], 1),
            failed=torch.cat([failed[:, None].expand(-1, width), parts.failed], 1),
            total=total,
            total_valid=readable,
            weights=torch.tensor(self.weights),
            confidence=table_confidence,
            std=stds,
        )


def number(reward: str, what: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A setting as a finite float within [least, most].

    Raises:
        UsageError: it is not.
    """
    plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not plain or not least <= value <= most:
        bounds = "" if (least, most) == (-math.inf, math.inf) else f" in [{least:g}, {most:g}]"
        raise UsageError(f"{what} of reward {reward!r} is {value!r}; it must be a number{bounds}")
    return float(value)


def choice(reward: str, what: str, value: Any, known: Any) -> Any:
    """A setting that must be one of the words of the Literal `known`.

    Raises:
        UsageError: it is not; the nearest word is named.
    """
    if value not in get_args(known):
        raise UsageError(f"reward {reward!r} has no {what} {value!r}{nearest(str(value), get_args(known))}")
    return value


def weighted(parts: Sequence[Reward | tuple[Reward, float]]) -> tuple[list[Reward], tuple[float, ...]]:
    """Rewards and their weights, 1 where none is given."""
    rewards: list[Reward] = []
    weights: list[float] = []
    for part in parts:
        reward, weight = part if isinstance(part, tuple) else (part, 1.0)
        rewards.append(reward)
        weights.append(float(weight))
    return rewards, tuple(weights)
