"""Rewards out of rewards. A combination keeps its parts' scores as columns, named `part` or `part/aspect`.

Each part is called through `guarded`: a part that breaks masks rows, it does not end the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from genalign.reward.base import Scope, aspect_weights, digest, needs_by_aspect, widest
from genalign.reward.combine.columns import abstained_rows, failed_rows, side_by_side, totals
from genalign.reward.combine.combination import Combination, Summary, weighted
from genalign.reward.scores import Missing, combine, total_confidence
from genalign.types import Media, Prompt, Reward, Scores, UsageError, nearest

Mode = Literal["confidence", "fallback", "stratified"]


class Sum(Combination):
    """Weighted sum of the parts' totals; where a part abstains, `missing` decides (see `base.combine`).

    parts: (reward, weight) pairs, or rewards of weight 1; weight 0 only logs. Each aspect of a part counts
    weight x its weight inside the part. A part that reads another modality than there is abstains from every row, so
    that one sum may serve pictures and texts.
    """

    def __init__(
        self, parts: Sequence[Reward | tuple[Reward, float]], missing: Missing = "zero_advantage", name: str = "sum"
    ) -> None:
        rewards, self.part_weights = weighted(parts)
        if not rewards:
            raise UsageError(f"reward {name!r} is a sum of nothing; give it at least one part")
        if missing not in get_args(Missing):
            raise UsageError(f"a sum has no missing rule {missing!r}{nearest(missing, get_args(Missing))}")
        super().__init__(rewards)
        self.name, self.missing = name, missing

    @property
    def aspects(self) -> tuple[str, ...]:
        return self.columns

    @property
    def weights(self) -> tuple[float, ...]:  # type: ignore[override]
        weights: list[float] = []
        for part, weight in zip(self.parts, self.part_weights, strict=True):
            weights += [float(inner) * weight for inner in aspect_weights(part)]
        return tuple(weights)

    @property
    def aspect_needs(self) -> tuple[frozenset[str], ...]:  # type: ignore[override]
        return tuple(names for part in self.parts for names in needs_by_aspect(part))

    def can_score(self, usable: Sequence[bool]) -> bool:
        counted = [part for part, weight in zip(usable, self.part_weights, strict=True) if weight]
        return all(counted) if self.missing == "invalid" else any(counted)

    @property
    def looks_at(self) -> Scope:
        siblings: Scope = "group" if self.missing == "zero_advantage" and len(self.parts) > 1 else "sample"
        return widest([siblings, *(part.looks_at for part in self.parts)])

    @property
    def version(self) -> str:
        return digest("sum", self.name, self.missing, self.part_weights, [part.version for part in self.parts])

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        scores = self._score_parts(prompts, media, group)
        total, total_valid = combine(
            *totals(scores),
            torch.tensor(self.part_weights),
            group,
            self.missing,
        )
        scaled = [part.weights * weight for part, weight in zip(scores, self.part_weights, strict=True)]
        weights = torch.cat(scaled)
        return replace(side_by_side(self.columns, scores), total=total, total_valid=total_valid, weights=weights)


class Hybrid(Summary):
    """A rule that knows how sure it is, and a learned reward for what it does not know; images and text alike.

    With rule r, its confidence c in [0,1] (0 where it abstains; 1 where a rule gives none) and model m:
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
        super().__init__([rule, model], name)
        self.mode, self.alpha, self.threshold = mode, alpha, threshold
        self.siblings = mode == "stratified"
        self.settings = (mode, (alpha, threshold) if mode == "stratified" else None)

    def can_score(self, usable: Sequence[bool]) -> bool:
        return usable[0] if self.mode == "stratified" else any(usable)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        rule, model = self._score_parts(prompts, media, group)
        rule_confidence = total_confidence(rule)  # (B,)
        if self.mode == "stratified":
            total, readable, failed = self._stratified(rule, model, group)
        else:
            share = rule_confidence if self.mode == "confidence" else rule.total_valid.to(rule_confidence)
            # Where one abstains the other stands alone; a part whose share is 0 may fail without masking the row.
            share = torch.where(abstained_rows(model) & rule.total_valid, 1.0, share)
            share = torch.where(abstained_rows(rule), 0.0, share)
            failed = (failed_rows(rule) & ~abstained_rows(rule)) | (failed_rows(model) & (share < 1))
            readable = ~failed & ((rule.total_valid & (share > 0)) | (model.total_valid & (share < 1)))
            total = share * rule.total + (1 - share) * model.total
        confidence = torch.where(rule.total_valid, rule_confidence, total_confidence(model))
        return self.summarise([rule, model], total, readable, failed, confidence=confidence)

    def _stratified(self, rule: Scores, model: Scores, group: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Total, valid, failed, each (B,)."""
        right = rule.total >= self.threshold
        siblings = torch.arange(len(right)) if group is None else group.cpu()
        scaled = torch.zeros_like(model.total)
        for name in torch.unique(siblings):
            for kind in (right, ~right):
                rows = (siblings == name) & kind & rule.total_valid & model.total_valid
                if rows.any():
                    scaled = torch.where(rows, _min_max(model.total, rows), scaled)
        failed = failed_rows(rule) | (failed_rows(model) & rule.total_valid)
        return right.to(scaled) + self.alpha * scaled, rule.total_valid & ~failed, failed


class Pick(Summary):
    """One aspect of a reward that has several, as a reward of its own, with the aspect's confidence and masks.

    Raises:
        UsageError: the reward has no such aspect; the nearest is named.
    """

    def __init__(self, part: Reward, aspect: str, name: str = "pick") -> None:
        super().__init__([part], name)
        if aspect not in part.aspects:
            raise UsageError(f"reward {part.name!r} has no aspect {aspect!r}{nearest(str(aspect), part.aspects)}")
        self.settings = (aspect,)
        self.index = part.aspects.index(aspect)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        (scores,) = self._score_parts(prompts, media, group)
        k = self.index
        confidence = None if scores.confidence is None else scores.confidence[:, k]
        std = None if scores.std is None else scores.std[:, k]
        failed, valid = scores.failed[:, k], scores.valid[:, k]
        return self.summarise([scores], scores.values[:, k], valid, failed, confidence=confidence, std=std)


def _min_max(values: Tensor, rows: Tensor) -> Tensor:
    """Affine map that sends the least of `rows` to -1 and the greatest to 1; 0 where they are equal."""
    low, high = values[rows].min(), values[rows].max()
    return (2 * (values - low) / (high - low) - 1) if high > low else torch.zeros_like(values)
