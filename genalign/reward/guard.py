"""A reward's scores, checked: what it raises or returns wrongly becomes a mask, never a number."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genalign.reward.base import RewardDefaults, ScoringError, unreadable
from genalign.reward.prefetch import Prefetch, prefetched
from genalign.reward.returned import describe
from genalign.reward.scores import all_failed, cat_scores, score_sound
from genalign.reward.wrapper import with_defaults
from genalign.types import CoreReward, GenalignError, Media, Prompt, Reward, Scores


def guarded(reward: CoreReward, prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> Scores:
    """Scores of `reward` on the CPU in fp32, whatever it does: rows it cannot be trusted on are marked as failed.

    Rows whose media are empty or not finite fail without being shown to it. An exception, another number of rows, other
    aspects or values that are not floating point fail every row; NaN, inf and a confidence outside [0,1] fail their
    entry. Gradients pass. genalign's own errors (a missing model) pass too. Scores that were made ahead are returned.
    """
    made: Scores | None = prefetched(reward, media)
    if made is not None:
        return made
    whole = with_defaults(reward)
    # A reward of several others leaves this to them: each reads other media.
    several = len(whole.parts) > 1
    faults = [None] * len(prompts) if several else unreadable(media, whole.needs, len(prompts))

    def call(prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> Scores:
        return _trusted(whole, prompts, media, group)

    return score_sound(whole, call, faults, prompts, media, group)


def prefetches_of(reward: CoreReward, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
    """What of a reward's work on media of these modalities can be done in parts while further rows are sampled.

    Its own `prefetches`; or, where it waits for a server or another process, its scoring, unless it looks at the batch.
    """
    whole = with_defaults(reward)
    assert isinstance(whole, RewardDefaults)
    own = whole.prefetches(modalities)
    if own or not whole.waits or whole.looks_at == "batch":
        return own
    return (Prefetch(whole, partial(guarded, whole), cat_scores, scope=whole.looks_at, elsewhere=True),)


def in_batches(reward: Any, rows: int) -> Prefetch:
    """The scoring of a reward in this process that computes `rows` samples at once, each as if it were alone.

    Where a row fails all are scored once more, together: what fails beside it depends on that.
    """
    return Prefetch(
        reward, partial(guarded, reward), cat_scores, rows, sound=lambda scores: not bool(scores.failed.any())
    )


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
