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
    Scope,
    all_silent,
    aspect_weights,
    column,
    combine,
    digest,
    lacks,
    nearest,
    total_confidence,
    unheard,
    widest,
)
from genalign.reward.guard import guarded
from genalign.types import Media, Prompt, Reward, Scores, UsageError


class Combination:
    """Names, needs and state of several rewards taken together; a part that reads another modality abstains."""

    name: str

    def __init__(self, parts: Sequence[Reward]) -> None:
        self.parts = tuple(parts)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        heard = [not unheard(part, offered) for part in self.parts]
        asked = heard if self.speaks(heard) else [True] * len(heard)
        of_parts = [lacks(part, offered) for part, counts in zip(self.parts, asked, strict=True) if counts]
        own = self.needs.difference(*(part.needs for part in self.parts)) - offered
        return own.union(*of_parts)

    def speaks(self, heard: Sequence[bool]) -> bool:
        """Whether it can say anything where only the parts that are `heard` do, (P,)."""
        return all(heard)

    @property
    def columns(self) -> tuple[str, ...]:
        """The parts' aspects, one after the other.

        Raises:
            UsageError: two of them have the same name.
        """
        names = [column(part, aspect) for part in self.parts for aspect in part.aspects]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
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
        return {f"{part.name}.{key}": value for part in self.parts for key, value in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for part in self.parts:
            prefix = f"{part.name}."
            part.load_state_dict({key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)})

    def _ask(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> list[Scores]:
        kinds = frozenset(media)
        return [
            all_silent(part, len(prompts)) if unheard(part, kinds) else guarded(part, prompts, media, group)
            for part in self.parts
        ]


class Summary(Combination):
    """A combination that says one number: its first column, called as it is; the other columns are kept for the log.

    own: columns of its own between the two, which its `update` may read (a part's total, a multiplier). settings: what
    tells two rewards of one class apart, beside name and parts. siblings: True where rows are compared in groups.
    state: its own tensors, which `update` alone may replace.
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
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"reward {self.name!r} has two columns called {twice!r}; give it or its part another name")
        return names

    @property
    def weights(self) -> tuple[float, ...]:
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
        absent = next((key for key in self.state if key not in state), None)
        if absent is not None:
            raise UsageError(f"the state of reward {self.name!r} lacks {absent!r}; the checkpoint is of another reward")
        self.state = {key: state[key] for key in self.state}
        super().load_state_dict(state)

    def say(
        self,
        told: Sequence[Scores],
        total: Tensor,
        readable: Tensor,
        failed: Tensor,
        own: Sequence[Tensor] = (),
        confidence: Tensor | None = None,
        std: Tensor | None = None,
    ) -> Scores:
        """The scores of a summary: total, readable, failed, confidence and std are (B,), as is each column of `own`.

        confidence: None takes the least of the parts that said something, where any part has one. std: None, 0 beside
        the parts' own.
        """
        total = torch.where(readable, total, 0.0)
        parts = side_by_side(self.columns, told)
        if confidence is None:
            confidence = least_sure(told, torch.stack([scores.total_valid for scores in told], 1))
        sure = None
        if confidence is not None:
            others = parts.valid.float() if parts.confidence is None else parts.confidence
            first = torch.where(readable, confidence, 0.0)[:, None]
            sure = torch.cat([first, readable[:, None].float().expand(-1, len(own)), others], 1)
        spread = parts.std
        if std is not None or spread is not None:
            nothing = torch.zeros_like(total)
            mine = torch.stack([nothing if std is None else std, *(nothing for _ in own)], 1)
            spread = torch.cat([mine, torch.zeros_like(parts.values) if spread is None else spread], 1)
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
            confidence=sure,
            std=spread,
        )


def number(reward: str, what: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A setting as a finite float within [least, most].

    Raises:
        UsageError: it is none.
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
    """Rewards and their weights, 1 where none is said."""
    pairs = [part if isinstance(part, tuple) else (part, 1.0) for part in parts]
    return [part for part, _ in pairs], tuple(float(weight) for _, weight in pairs)


def totals(told: Sequence[Scores]) -> tuple[Tensor, Tensor, Tensor]:
    """The parts' totals, where they can be read, and where they are missing for a failure, each (B,P)."""
    return (
        torch.stack([scores.total for scores in told], 1),
        torch.stack([scores.total_valid for scores in told], 1),
        torch.stack([lost_rows(scores) for scores in told], 1),
    )


def least_sure(told: Sequence[Scores], counts: Tensor) -> Tensor | None:
    """(B,) the least confidence among the parts that count (B,P); None where no part has any."""
    if all(scores.confidence is None for scores in told):
        return None
    return torch.where(counts, torch.stack([total_confidence(scores) for scores in told], 1), 1.0).amin(1)


def batch_mean(scores: Scores, aspect: str) -> float | None:
    """Mean of a column over the rows where it is valid, in float64; None where there is none."""
    k = scores.names.index(aspect)
    rows = scores.values[scores.valid[:, k], k].double()
    return float(rows.sort().values.mean()) if len(rows) else None


def lost_rows(scores: Scores) -> Tensor:
    """(B,) rows whose total is missing because something that counts went wrong."""
    return scores.failed[:, scores.weights != 0].any(1) & ~scores.total_valid


def silent_rows(scores: Scores) -> Tensor:
    return ~scores.total_valid & ~lost_rows(scores)


def side_by_side(names: tuple[str, ...], parts: Sequence[Scores]) -> Scores:
    """All columns of all parts; `total` is the first part's, for the caller to replace."""
    info = {key: value for part in parts for key, value in part.info.items() if key != "error"}
    if any("error" in part.info for part in parts):
        told = zip(*(part.info.get("error", [None] * len(part.total)) for part in parts), strict=True)
        info["error"] = ["; ".join(filter(None, row)) or None for row in told]
    stds = [torch.zeros_like(part.values) if part.std is None else part.std for part in parts]
    confidences = [part.valid.float() if part.confidence is None else part.confidence for part in parts]
    return Scores(
        names=names,
        values=torch.cat([part.values for part in parts], 1),
        valid=torch.cat([part.valid for part in parts], 1),
        failed=torch.cat([part.failed for part in parts], 1),
        total=parts[0].total,
        total_valid=parts[0].total_valid,
        weights=torch.cat([part.weights for part in parts]),
        confidence=torch.cat(confidences, 1) if any(part.confidence is not None for part in parts) else None,
        std=torch.cat(stds, 1) if any(part.std is not None for part in parts) else None,
        info=info,
    )
