"""A reward's scores, checked: what it raises or returns wrongly becomes a mask, never a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from genalign.reward.base import ScoringError, unreadable
from genalign.reward.function import describe
from genalign.reward.scores import all_failed, score_sound
from genalign.reward.wrapper import with_defaults
from genalign.types import CoreReward, GenalignError, Media, Prompt, Reward, Scores


def guarded(reward: CoreReward, prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> Scores:
    """Scores of `reward` on the CPU in fp32, whatever it does: rows it cannot be trusted on are marked as failed.

    Rows whose media are empty or not finite fail without being shown to it. An exception, another number of rows, other
    aspects or values that are not floating point fail every row; NaN, inf and a confidence outside [0,1] fail their
    entry. Gradients pass. genalign's own errors (a missing model) pass too.
    """
    whole = with_defaults(reward)
    # A reward of several others leaves this to them: each reads other media.
    several = len(whole.parts) > 1
    faults = [None] * len(prompts) if several else unreadable(media, whole.needs, len(prompts))

    def call(prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> Scores:
        return _trusted(whole, prompts, media, group)

    return score_sound(whole, call, faults, prompts, media, group)


def _trusted(reward: Reward, prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> Scores:
    rows = len(prompts)
    try:
        scores = reward(prompts, media, group)
        if len(scores.total) != rows or tuple(scores.names) != tuple(reward.aspects):
            raise ScoringError(f"returned {len(scores.total)} rows of {scores.names} for {rows} of {reward.aspects}")
        if not (scores.values.is_floating_point() and scores.total.is_floating_point()):
            raise ScoringError(f"returned scores of dtype {scores.values.dtype}")
    except GenalignError:
        raise
    except Exception as error:
        return all_failed(reward, rows, describe(error))
    return _checked(scores)


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
