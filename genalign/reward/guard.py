"""A reward's scores, checked: what it raises or returns wrongly becomes a mask, never a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genalign.reward.base import ScoringError
from genalign.reward.function import describe
from genalign.reward.scores import all_failed
from genalign.reward.wrapper import with_defaults
from genalign.types import CoreReward, GenalignError, Media, Prompt, Scores, Track


def guarded(reward: CoreReward, prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> Scores:
    """Scores of `reward` on the CPU in fp32, whatever it does: rows it cannot be trusted on are marked as failed.

    An exception, another number of rows, other aspects or values that are not floating point fail every row; NaN, inf
    and a confidence outside [0,1] fail their entry. Gradients pass. genalign's own errors (a missing model) pass too.
    A sample that is not finite itself (half precision overflowed) fails its own row and no other: the reward is given
    zeros in its place.
    """
    rows = len(prompts)
    media, broken = _finite(media)
    try:
        scores = reward(prompts, media, group)
        if len(scores.total) != rows or tuple(scores.names) != tuple(reward.aspects):
            raise ScoringError(f"returned {len(scores.total)} rows of {scores.names} for {rows} of {reward.aspects}")
        if not (scores.values.is_floating_point() and scores.total.is_floating_point()):
            raise ScoringError(f"returned scores of dtype {scores.values.dtype}")
    except GenalignError:
        raise
    except Exception as error:
        return all_failed(with_defaults(reward), rows, describe(error))
    checked = _checked(scores)
    return _without(checked, broken) if any(broken) else checked


def _finite(media: Media) -> tuple[Media, list[bool]]:
    """The media with zeros for rows that hold NaN or inf, and which rows those are."""
    broken = [False] * media.rows
    for track in media.values():
        for k, row in enumerate(track.data):
            broken[k] |= isinstance(row, Tensor) and not bool(torch.isfinite(row).all())
    if not any(broken):
        return media, broken
    tracks = {}
    for name, track in media.items():
        if isinstance(track.data, Tensor):
            tracks[name] = Track(torch.where(torch.isfinite(track.data), track.data, 0.0), track.rate)
        else:
            rows: Any = [torch.nan_to_num(row) if isinstance(row, Tensor) else row for row in track.data]
            tracks[name] = Track(rows, track.rate)
    return Media(**tracks), broken


def _without(scores: Scores, broken: list[bool]) -> Scores:
    rows = torch.tensor(broken)
    errors = list(scores.info.get("error", [None] * len(broken)))
    for k in rows.nonzero().flatten().tolist():
        errors[k] = "the sample itself holds values that are not numbers; sample in float32 or bfloat16"
    return replace(
        scores,
        values=torch.where(rows[:, None], 0.0, scores.values),
        valid=scores.valid & ~rows[:, None],
        failed=scores.failed | rows[:, None],
        total=torch.where(rows, 0.0, scores.total),
        total_valid=scores.total_valid & ~rows,
        info={**scores.info, "error": errors},
    )


def _checked(scores: Scores) -> Scores:
    """The same, with every entry that cannot be trusted turned into a failure, and every masked number into 0."""
    values, total = scores.values.float().cpu(), scores.total.float().cpu()
    valid, failed, readable = scores.valid.cpu(), scores.failed.cpu(), scores.total_valid.cpu()
    confidence = None if scores.confidence is None else scores.confidence.float().cpu()
    sound = torch.isfinite(values)
    if confidence is not None:
        sound = sound & (confidence >= 0) & (confidence <= 1)
    broken = valid & ~sound
    valid, failed = valid & sound, failed | broken
    weights = scores.weights.float().cpu()
    used = weights != 0  # a broken column that only logs leaves the total as it is
    readable = readable & torch.isfinite(total) & ~broken[:, used].any(1)
    info = dict(scores.info)
    if broken.any():
        messages = info.get("error", [None] * len(total))
        wrong = "returned a number that is not finite, or a confidence outside [0,1]"
        info["error"] = [wrong if bad else old for old, bad in zip(messages, broken.any(1).tolist(), strict=True)]
    return replace(
        scores,
        values=torch.where(valid, values, 0.0),
        valid=valid,
        failed=failed,
        total=torch.where(readable, total, 0.0),
        total_valid=readable,
        weights=weights,
        confidence=None if confidence is None else torch.where(valid, confidence, 0.0),
        std=None if scores.std is None else scores.std.float().cpu(),
        info=info,
    )
