"""Scores of plain rewards, row by row; and of a rollout, without pauses."""

from __future__ import annotations

from typing import Any

import torch

from genalign.method.common import sample_and_score, without_pauses
from genalign.types import Reward, Scores, Trajectory
from tests.helpers.toy_rewards import prompts, says, texts

Rows = list[Any]


def score(reward: Reward, count: int, group: list[int] | None = None, **facts: Rows) -> Scores:
    asked = prompts(count, row=list(range(count)), **facts)
    return reward(asked, texts(*["x"] * count), None if group is None else torch.tensor(group))


def parts(*columns: Rows) -> list[Reward]:
    return [says(*column, name=f"p{k}") for k, column in enumerate(columns)]


def total(reward: Reward, count: int, group: list[int] | None = None, **facts: Rows) -> list[float]:
    scores = score(reward, count, group, **facts)
    assert torch.equal(scores.values[:, 0], scores.total)
    return scores.total.tolist()


def same(one: Scores, other: Scores) -> None:
    for field in ("values", "valid", "failed", "total", "total_valid", "weights"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert (one.confidence is None) == (other.confidence is None)
    if one.confidence is not None and other.confidence is not None:
        assert torch.equal(one.confidence, other.confidence)


def sampled_and_scored(*given: Any) -> tuple[Trajectory, Scores]:
    return without_pauses(sample_and_score(*given))
