"""A ranking of several samples of one prompt, as the votes of its pairs, which export, agreement and training read."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from genalign.demo.votes import Candidate, Choice, Vote
from genalign.types import UsageError


def checked_ranks(ranks: Any, count: int) -> list[int]:
    """The places 1, 2, ... of `count` samples, the best first; equal ones are ties.

    Raises:
        UsageError: they are not so many whole numbers from 1 to `count`.
    """
    fit = isinstance(ranks, list) and len(ranks) == count
    if not fit or any(type(rank) is not int or not 1 <= rank <= count for rank in ranks):
        raise UsageError(f"a ranking gives each of {count} samples a place from 1 to {count}; rank them again")
    return list(ranks)


def votes_of(
    prompt: str,
    samples: Sequence[Candidate],
    ranks: Sequence[int] | None,
    annotator: str,
    seconds: float,
    facts: Mapping[str, Any],
) -> list[Vote]:
    """A vote on every two of the samples, in the order in which they stand; ranks None: all are skipped."""
    number = uuid.uuid4().hex
    votes = []
    for a, b in combinations(range(len(samples)), 2):
        choice: Choice = "skip"
        if ranks is not None:
            choice = "tie" if ranks[a] == ranks[b] else "left" if ranks[a] < ranks[b] else "right"
        votes.append(Vote(prompt, samples[a], samples[b], choice, annotator, seconds, facts, ranking=number))
    return votes


def samples_of(votes: Sequence[Vote]) -> list[Candidate]:
    """The samples that votes given at once are about, as they stood: a pair, or those of a ranking."""
    return list(dict.fromkeys(side for vote in votes for side in (vote.left, vote.right)))


def ranks_of(votes: Sequence[Vote]) -> list[int]:
    """The places of `samples_of`: one more than there are samples before it."""
    beaten = [found[1] for vote in votes if (found := vote.decided) is not None]
    return [1 + beaten.count(sample) for sample in samples_of(votes)]
