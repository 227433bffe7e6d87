"""Heads on frozen features: what a fitted reward learns. All score a row, or compare two, in logits.

A head reads features (N,H) and users (N,), places in its list of users, -1 for a stranger. Those of this file ignore
the users; the personal ones of personal.py do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.reward.fit import losses as fit_losses
from genalign.reward.fit.losses import skew_score


class Trunk(nn.Module):
    """(N,H) -> (N,out): features in units of their spread, then one linear layer, or two with SiLU between them.

    (The two-layer head is BaseReward's, arXiv 2509.16127.) width: of the hidden layer; None: linear.
    """

    def __init__(self, features: int, out: int, width: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.mean, self.spread = nn.Buffer(torch.zeros(features)), nn.Buffer(torch.ones(features))
        self.layers = (
            nn.Linear(features, out, bias=bias)
            if width is None
            else nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, out, bias=bias))
        )

    @torch.no_grad()
    def measure(self, rows: Tensor) -> None:
        """Take mean and spread from rows (N,H); a feature that never varies stays as it is."""
        self.mean.copy_(rows.mean(0))
        spread = rows.std(0) if len(rows) > 1 else torch.ones_like(self.spread)
        self.spread.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def forward(self, rows: Tensor) -> Tensor:
        return self.layers((rows - self.mean) / self.spread)


class ScalarHead(nn.Module):
    """One number a row; two are compared by its difference."""

    pairwise = False

    def __init__(self, features: int, width: int | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(features, 1, width)

    def score(self, rows: Tensor, users: Tensor) -> Tensor:
        return self.trunk(rows)[:, 0]

    def compare(self, a: Tensor, b: Tensor, users: Tensor) -> Tensor:
        return self.score(a, users) - self.score(b, users)


class MatchHead(nn.Module):
    """s(x) + <u(x), w(p)> / sqrt(rank): how good the sample x is, and how well it matches its prompt p.

    s and u are the outputs of one trunk, w is linear (two towers, as in CLIP). of_prompt: how many of the features, the
    last ones, come of the prompt; the others are x.
    """

    pairwise = False

    def __init__(self, features: int, of_prompt: int, width: int) -> None:
        super().__init__()
        self.seen = features - of_prompt
        self.trunk, self.said = Trunk(self.seen, 1 + width, width), nn.Linear(of_prompt, width)

    def score(self, rows: Tensor, users: Tensor) -> Tensor:
        own = self.trunk(rows[:, : self.seen])
        said = self.said(rows[:, self.seen :])
        return own[:, 0] + (own[:, 1:] * said).sum(1) / math.sqrt(said.shape[1])

    def compare(self, a: Tensor, b: Tensor, users: Tensor) -> Tensor:
        return self.score(a, users) - self.score(b, users)


class AspectHeads(nn.Module):
    """A head an aspect, each of which reads the first `reads` of the features."""

    def __init__(self, heads: Sequence[nn.Module], reads: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.reads = nn.ModuleList(heads), tuple(reads)

    def score(self, rows: Tensor, users: Tensor) -> Tensor:
        """(N,K)."""
        both = zip(self.heads, self.reads, strict=True)
        return torch.stack([head.score(rows[:, :reads], users) for head, reads in both], 1)  # type: ignore[operator]


class SkewHead(nn.Module):
    """The general preference model: embeddings (N,2m) of length 1, compared by a skew form over tau.

    (Zhang et al., arXiv 2410.02197.) It can hold cycles, so it has no number for a row alone.
    """

    pairwise = True

    def __init__(self, features: int, width: int | None = None, planes: int = 1, tau: float = 0.1) -> None:
        super().__init__()
        self.trunk, self.tau = Trunk(features, 2 * planes, width), tau

    def compare(self, a: Tensor, b: Tensor, users: Tensor) -> Tensor:
        return skew_score(F.normalize(self.trunk(a), dim=1), F.normalize(self.trunk(b), dim=1)) / self.tau


class PairHead(nn.Module):
    """Reads both rows at once and gives the logit of "yes, the first is better", averaged over both orders.

    (In the manner of RewardDance, arXiv 2509.08826, and OneReward, arXiv 2508.21066, on features instead of tokens.)
    """

    pairwise = True

    def __init__(self, features: int, width: int | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(2 * features, 1, width)

    def compare(self, a: Tensor, b: Tensor, users: Tensor) -> Tensor:
        return (self.trunk(torch.cat([a, b], 1)) - self.trunk(torch.cat([b, a], 1)))[:, 0] / 2


def strangers(rows: Tensor) -> Tensor:
    """Users (N,) of whom nothing is known."""
    return torch.full((len(rows),), -1, dtype=torch.long, device=rows.device)


def preference_loss(
    name: str,
    head: Any,
    a: Tensor,
    b: Tensor,
    p: Tensor,
    users: Tensor,
    margin: Tensor | float = 0.0,
    k: float = 5.0,
    centring: float = 0.0,
) -> Tensor:
    """(N,): the loss called `name` of pairs of rows (N,H); see losses.py.

    bradley-terry, soft, margin and gpm differ in what they are given (labels, margins, a head), not in their formula.
    """
    delta = head.compare(a, b, users)
    if name == "ties":
        loss = fit_losses.ties(delta, p, k)
    elif name == "yes-no":
        loss = fit_losses.yes_no(delta, p)
    else:
        loss = fit_losses.bradley_terry(delta, p, margin)
    if centring:
        loss = loss + centring * fit_losses.centre(head.score(a, users), head.score(b, users))
    return loss
