"""Rewards out of rewards. A combination keeps its parts' scores as columns, named `part` or `part/aspect`.

Each part is asked under guard: a part that breaks masks rows, it does not end the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from genalign.reward.base import (
    Missing,
    Scope,
    aspect_weights,
    column,
    combine,
    digest,
    nearest,
    total_confidence,
    widest,
)
from genalign.reward.runner import guarded
from genalign.types import Media, Prompt, Reward, Scores, UsageError

Mode = Literal["confidence", "fallback", "stratified"]


class _Combination:
    """Names, needs and state of several rewards taken together."""

    name: str

    def __init__(self, parts: Sequence[Reward]) -> None:
        self.parts = tuple(parts)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(part.needs for part in self.parts))

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
        return [guarded(part, prompts, media, group) for part in self.parts]


class Sum(_Combination):
    """Weighted sum of the parts' totals; where a part abstains, `missing` decides (see `base.combine`).

    parts: (reward, weight) pairs, or rewards of weight 1; weight 0 only logs. Each aspect of a part counts
    weight x its weight inside the part.
    """

    def __init__(
        self, parts: Sequence[Reward | tuple[Reward, float]], missing: Missing = "zero_advantage", name: str = "sum"
    ) -> None:
        pairs = [part if isinstance(part, tuple) else (part, 1.0) for part in parts]
        if not pairs:
            raise UsageError(f"reward {name!r} is a sum of nothing; give it at least one part")
        if missing not in get_args(Missing):
            raise UsageError(f"a sum has no missing rule {missing!r}{nearest(missing, get_args(Missing))}")
        super().__init__([part for part, _ in pairs])
        self.name, self.missing = name, missing
        self.part_weights = tuple(float(weight) for _, weight in pairs)

    @property
    def aspects(self) -> tuple[str, ...]:
        return self.columns

    @property
    def weights(self) -> tuple[float, ...]:
        scaled = zip(self.parts, self.part_weights, strict=True)
        return tuple(float(w) * weight for part, weight in scaled for w in aspect_weights(part))

    @property
    def looks_at(self) -> Scope:
        siblings: Scope = "group" if self.missing == "zero_advantage" and len(self.parts) > 1 else "sample"
        return widest([siblings, *(part.looks_at for part in self.parts)])

    @property
    def version(self) -> str:
        return digest("sum", self.name, self.missing, self.part_weights, [part.version for part in self.parts])

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        told = self._ask(prompts, media, group)
        total, total_valid = combine(
            torch.stack([scores.total for scores in told], 1),
            torch.stack([scores.total_valid for scores in told], 1),
            torch.stack([_lost(scores) for scores in told], 1),
            torch.tensor(self.part_weights),
            group,
            self.missing,
        )
        weights = torch.cat([s.weights * weight for s, weight in zip(told, self.part_weights, strict=True)])
        return replace(_side_by_side(self.columns, told), total=total, total_valid=total_valid, weights=weights)


class Hybrid(_Combination):
    """A rule that knows how sure it is, and a learned reward for what it does not know; images and text alike.

    With rule r, its confidence c in [0,1] (0 where it abstains; 1 where a rule does not say) and model m:
    "confidence": c r + (1 - c) m (in the spirit of HARMO, arXiv 2510.05283). "fallback": r where it applies, else m.
    "stratified": 1[r >= threshold] + alpha s, with s in [-1,1] the model's score min-max scaled among the siblings of
    the same class (HERO, arXiv 2510.07242), so that with alpha < 1/2 no model can lift a wrong sample over a right one.

    Where one part abstains the other stands alone; where both do, so does the hybrid. A part that failed masks the row
    only where it would have counted. First column: the hybrid; then the parts, for the log. Its confidence is that of
    the rule where the rule applies, else that of the model.

    Departs from the papers: (1) HARMO's coefficients are not published; the mix is the plain convex one. (2) A class
    of one sample, or without spread, has s = 0 where HERO's epsilon gives -1. (3) HERO's weighting of groups by the
    variance of the model is left out. (4) Stratified abstains where the rule does: its row has no class.
    """

    def __init__(
        self,
        rule: Reward,
        model: Reward,
        mode: Mode = "confidence",
        alpha: float = 0.25,
        threshold: float = 0.5,
        name: str = "hybrid",
    ) -> None:
        if mode not in get_args(Mode):
            raise UsageError(f"a hybrid has no mode {mode!r}{nearest(mode, get_args(Mode))}")
        if not 0 < alpha < 0.5:
            raise UsageError(
                f"alpha of hybrid {name!r} is {alpha:g}; it must lie between 0 and 0.5 to keep classes apart"
            )
        super().__init__([rule, model])
        self.name, self.mode, self.alpha, self.threshold = name, mode, alpha, threshold

    @property
    def aspects(self) -> tuple[str, ...]:
        return (self.name, *self.columns)

    @property
    def weights(self) -> tuple[float, ...]:
        return (1.0, *(0.0 for _ in self.columns))

    @property
    def looks_at(self) -> Scope:
        siblings: Scope = "group" if self.mode == "stratified" else "sample"
        return widest([siblings, *(part.looks_at for part in self.parts)])

    @property
    def version(self) -> str:
        strata = (self.alpha, self.threshold) if self.mode == "stratified" else None
        return digest("hybrid", self.name, self.mode, strata, [part.version for part in self.parts])

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        rule, model = self._ask(prompts, media, group)
        sure = total_confidence(rule)  # (B,)
        if self.mode == "stratified":
            total, readable, lost = self._stratified(rule, model, group)
        else:
            share = sure if self.mode == "confidence" else rule.total_valid.to(sure)
            share = torch.where(_abstains(model) & rule.total_valid, 1.0, share)
            share = torch.where(_abstains(rule), 0.0, share)
            lost = (_lost(rule) & ~_abstains(rule)) | (_lost(model) & (share < 1))
            readable = ~lost & ((rule.total_valid & (share > 0)) | (model.total_valid & (share < 1)))
            total = share * rule.total + (1 - share) * model.total
        total = torch.where(readable, total, 0.0)
        parts = _side_by_side(self.columns, [rule, model])
        confidence = torch.where(rule.total_valid, sure, total_confidence(model))
        others = parts.valid.float() if parts.confidence is None else parts.confidence
        return replace(
            parts,
            names=self.aspects,
            values=torch.cat([total[:, None], parts.values], 1),
            valid=torch.cat([readable[:, None], parts.valid], 1),
            failed=torch.cat([lost[:, None], parts.failed], 1),
            total=total,
            total_valid=readable,
            weights=torch.tensor(self.weights),
            confidence=torch.cat([torch.where(readable, confidence, 0.0)[:, None], others], 1),
            std=None,
        )

    def _stratified(self, rule: Scores, model: Scores, group: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        right = rule.total >= self.threshold
        siblings = torch.arange(len(right)) if group is None else group.cpu()
        scaled = torch.zeros_like(model.total)
        for name in torch.unique(siblings):
            for kind in (right, ~right):
                rows = (siblings == name) & kind & rule.total_valid & model.total_valid
                if rows.any():
                    scaled = torch.where(rows, _min_max(model.total, rows), scaled)
        lost = _lost(rule) | (_lost(model) & rule.total_valid)
        return right.to(scaled) + self.alpha * scaled, rule.total_valid & ~lost, lost


def _min_max(values: Tensor, rows: Tensor) -> Tensor:
    """Affine map that sends the least of `rows` to -1 and the greatest to 1; 0 where they are equal."""
    low, high = values[rows].min(), values[rows].max()
    return (2 * (values - low) / (high - low) - 1) if high > low else torch.zeros_like(values)


def _lost(scores: Scores) -> Tensor:
    """(B,) rows whose total is missing because something that counts went wrong."""
    return scores.failed[:, scores.weights != 0].any(1) & ~scores.total_valid


def _abstains(scores: Scores) -> Tensor:
    return ~scores.total_valid & ~_lost(scores)


def _side_by_side(names: tuple[str, ...], parts: Sequence[Scores]) -> Scores:
    """All columns of all parts; `total` is the first part's, for the caller to replace."""
    kinds: list[dict[str, Any]] = [{"error": part.info["error"]} if "error" in part.info else {} for part in parts]
    rows = len(parts[0].total)
    errors = [[kind.get("error", [None] * rows)[i] for kind in kinds] for i in range(rows)]
    info = {key: value for part in parts for key, value in part.info.items() if key != "error"}
    if any(kinds):
        info["error"] = ["; ".join(filter(None, row)) or None for row in errors]
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
        info=info,
    )
