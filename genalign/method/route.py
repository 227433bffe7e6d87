"""Rewards and the media that they are about: where a policy draws several at once, each has advantages of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from genalign.method.losses import only_aspects
from genalign.types import Reward, Scores

Route = Literal["modality", "sum"]
Advantages = tuple[Tensor, Tensor, dict[str, float]]  # advantage (B,), counted (B,), log


def advantages_by_medium(
    scores: Scores,
    group: Tensor,
    about: tuple[str, ...],
    reward: Reward | None,
    route: Route,
    rule: Callable[[Scores], Advantages],
) -> Advantages:
    """The advantages of one `rule`: (B,), or (B,M) where they are routed to the M media that a step's columns are
    `about` (OmniNFT, arXiv 2605.12480): each medium's come from the aspects that read it, and from those that read
    none. A row counts where it does for any medium.

    Departs from the paper: an aspect that reads several media counts for each of them.
    """
    whole = rule(scores)
    if route == "sum" or not about or reward is None:
        return whole
    advantage, counted = whole[0].new_zeros(len(whole[0]), len(about)), torch.zeros_like(whole[1])
    needs = reward.aspect_needs or [reward.needs] * len(scores.names)
    for k, medium in enumerate(about):
        kept = torch.tensor([medium in names or names.isdisjoint(about) for names in needs])
        if bool((scores.weights[kept] != 0).any()):
            advantage[:, k], counts, _ = rule(only_aspects(scores, group, kept))
            counted = counted | counts
    return advantage, counted, whole[2]
