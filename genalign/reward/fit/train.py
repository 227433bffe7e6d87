"""Fitting a head to preferences or ratings of rows whose features are already known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from genalign.reward.fit.heads import MatchHead, PairHead, ScalarHead, SkewHead, preference_loss, strangers
from genalign.reward.fit.losses import between, gradient_penalty, regression, settle
from genalign.reward.fit.measures import temperature
from genalign.reward.fit.personal import IdealPoints, LatentUser, Mixture
from genalign.types import GenalignError, UsageError

PERSONAL = ("pal", "vpl", "micro")


class HeadSettings(BaseModel):
    """What reads the features."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: Literal["linear", "mlp", "match", "pal", "vpl", "micro"] = "linear"
    """One linear layer; two with SiLU; two whose outputs are also matched with the prompt, by their product with a
    linear layer on it; or a personal reward: ideal points, a latent user, a mixture with a router."""
    width: int = Field(default=64, ge=1)
    """Of the hidden layer, where there is one."""
    blind: list[str] = []
    """Aspects whose head must not see the prompt (VideoReward's visual and motion quality)."""
    members: int = Field(default=2, ge=1)
    """Ideal points of pal, rewards of micro."""
    dims: int = Field(default=8, ge=1)
    """Of the space that pal's points lie in, of vpl's latent user."""
    planes: int = Field(default=1, ge=1)
    """Of the loss gpm: its embeddings have twice as many dims."""
    tau: float = Field(default=0.1, gt=0)
    """Temperature of the loss gpm."""


class LossSettings(BaseModel):
    """What the head is fitted by."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: Literal["bradley-terry", "ties", "margin", "soft", "yes-no", "gpm", "regression"] = "bradley-terry"
    """Preferences: bradley-terry (ties teach nothing), ties (Rao-Kupper), margin, soft (labels as sure as they are,
    ties 1/2), yes-no (both samples are read together), gpm (may be cyclic). Ratings: regression."""
    k: float = Field(default=5.0, gt=1)
    """Of ties: at equal rewards a tie has the probability (k - 1) / (k + 1)."""
    margin: float = Field(default=0.57, ge=0)
    """Of margin, in logits."""
    smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Of soft: a label 1 becomes 1 minus this."""
    centring: float = Field(default=0.0, ge=0)
    """Weight of (r_a + r_b)^2."""
    huber: float | None = Field(default=None, gt=0)
    """Of regression: the error beyond which the loss is linear; null: squared everywhere."""


class VoteSettings(BaseModel):
    """How strong each preference is, by the vote of rewards that did not see it."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    how: Literal["flip", "soften", "margin"] = "soften"
    """flip labels that the voters contradict; soften all labels; or demand the strength as a margin."""
    voters: int = Field(default=5, ge=1)
    """Linear heads; each is fitted twice, on either half of the prompts, and votes on the other."""
    share: float = Field(default=0.2, gt=0, lt=0.5)
    """How many of the labels may be wrong: at most so many are flipped; softened labels are sure up to this."""


class FitSettings(BaseModel):
    """Steps and optimizer."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(default=500, ge=1)
    """Of AdamW, whose rate falls to 0 along a cosine."""
    batch: int = Field(default=256, ge=1)
    """Pairs (or rated samples) a step."""
    learning_rate: float = Field(default=0.01, gt=0)
    """At the start."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW, decoupled."""
    lipschitz: float | None = Field(default=None, gt=0)
    """The slope above which a gradient penalty sets in, per unit of spread of each feature; null: none."""
    lipschitz_weight: float = Field(default=10.0, gt=0)
    """Of that penalty."""
    seed: int = Field(default=0, ge=0)
    """Of the head, the batches and the held-out prompts."""


class Fit(BaseModel):
    """All of it; which combinations make sense is checked here."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    head: HeadSettings = HeadSettings()
    """What reads the features."""
    loss: LossSettings = LossSettings()
    """What it is fitted by."""
    votes: VoteSettings | None = None
    """How strong each preference is; null: all labels count alike."""
    fit: FitSettings = FitSettings()
    """Steps and optimizer."""

    @model_validator(mode="after")
    def _fits(self) -> Fit:
        personal = self.head.kind in PERSONAL
        if personal and self.loss.name != "bradley-terry":
            raise ValueError(f"head {self.head.kind} has a loss of its own; leave loss.name at bradley-terry")
        if self.votes and (personal or self.loss.name in ("ties", "gpm", "regression")):
            taker = self.head.kind if personal else self.loss.name
            raise ValueError(f"votes are margins of one reward for all, which does not suit {taker}; drop votes")
        if self.head.kind == "match" and (self.fit.lipschitz or self.loss.name in ("gpm", "yes-no")):
            raise ValueError("head match takes neither fit.lipschitz nor the losses gpm and yes-no; drop them")
        if (self.fit.lipschitz or self.loss.centring) and self.loss.name in ("gpm", "yes-no"):
            raise ValueError(f"{self.loss.name} has no number for one sample; drop fit.lipschitz and loss.centring")
        return self


@dataclass(frozen=True)
class PreferenceData:
    """features (M,H) of M samples; a, b (N,): which two were compared; p (N,) that a is better; users (N,), -1 for
    none; group (N,): equal for pairs of one prompt. With ratings (N,), b is unused and p is the rating."""

    features: Tensor
    a: Tensor
    b: Tensor
    p: Tensor
    users: Tensor
    group: Tensor

    def select(self, rows: Tensor) -> PreferenceData:
        return replace(
            self, a=self.a[rows], b=self.b[rows], p=self.p[rows], users=self.users[rows], group=self.group[rows]
        )

    def __len__(self) -> int:
        return len(self.p)


def build_head(plan: Fit, features: int, users: int, of_prompt: int = 0) -> Any:
    """The untrained head. of_prompt: how many of the features come of the prompt; without any, match is mlp."""
    head = plan.head
    if head.kind == "match" and of_prompt:
        return MatchHead(features, of_prompt, head.width)
    width = head.width if head.kind in ("mlp", "match") else None
    if head.kind == "pal":
        return IdealPoints(features, users, head.members, head.dims)
    if head.kind == "vpl":
        return LatentUser(features, users, head.dims, head.width)
    if head.kind == "micro":
        return Mixture(features, users, head.members)
    if plan.loss.name == "gpm":
        return SkewHead(features, width, head.planes, head.tau)
    return PairHead(features, width) if plan.loss.name == "yes-no" else ScalarHead(features, width)


def fit_head(plan: Fit, data: PreferenceData, users: int = 0, of_prompt: int = 0) -> Any:
    """A head fitted to all of `data`; the same from the same settings. of_prompt: as in `build_head`.

    Raises:
        UsageError: nothing to learn from, or a personal head and no users. GenalignError: the loss is not finite.
    """
    if plan.head.kind in PERSONAL and not users:
        raise UsageError(f"head {plan.head.kind} learns the taste of each user, but no pair names one; add 'user'")
    margin: Tensor | float = plan.loss.margin if plan.loss.name == "margin" else 0.0
    if plan.loss.name != "regression":
        data = _oriented(data, plan.loss)
        if not len(data):
            raise UsageError("no pair prefers anything, so a reward cannot be fitted to them; take loss.name: ties")
        if plan.votes is not None:
            settled, margins = settle(data.p, vote(plan, data), plan.votes.how, plan.votes.share)
            data, margin = replace(data, p=settled), margin + margins
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been fitted
        torch.manual_seed(plan.fit.seed)
        head = build_head(plan, data.features.shape[1], users, of_prompt)
        _measure(head, data)
        _train(head, plan.fit, len(data), lambda rows: _loss(head, plan, data, rows, margin))
    if plan.head.kind in PERSONAL:
        head.settle(data.features[data.a], data.features[data.b], data.p, data.users)
    return head.eval().requires_grad_(False)


def vote(plan: Fit, data: PreferenceData) -> Tensor:
    """(M,N): the leads of M voters, each two linear heads, in logits; by the head that did not see the prompt.

    Heads on few pairs are overconfident: the votes are divided by the temperature at which they agree best
    with the labels, which they have not seen and of which `votes.share` are wrong.
    """
    assert plan.votes is not None
    plain = Fit(fit=plan.fit.model_copy(update={"lipschitz": None}))
    votes = torch.zeros(plan.votes.voters, len(data))
    names = data.group.unique()
    if len(names) < 2:
        raise UsageError("votes need pairs of at least 2 prompts, so that a voter can judge what it did not see")
    for m in range(plan.votes.voters):
        order = names[torch.randperm(len(names), generator=torch.Generator().manual_seed(plan.fit.seed + m))]
        first = torch.isin(data.group, order[: len(order) // 2])
        for seen in (first, ~first):
            head = fit_head(plain, data.select(seen.nonzero()[:, 0]))
            rest = (~seen).nonzero()[:, 0]
            votes[m, rest] = compare(head, data.select(rest))
    scale = temperature(data.p.double().numpy(), votes.mean(0).double().numpy(), plan.votes.share)
    return votes / scale if math.isfinite(scale) else votes


@torch.no_grad()
def compare(head: Any, data: PreferenceData) -> Tensor:
    """(N,) logits that a is better, as each pair's own user sees it."""
    return head.compare(data.features[data.a], data.features[data.b], data.users)


def _oriented(data: PreferenceData, loss: LossSettings) -> PreferenceData:
    """The preferred one first; labels as the loss wants them: hard ones without ties, or soft ones."""
    first = data.p >= 0.5
    p = torch.where(first, data.p, 1 - data.p)
    turned = replace(data, a=torch.where(first, data.a, data.b), b=torch.where(first, data.b, data.a), p=p)
    if loss.name == "soft":
        return replace(turned, p=p.clamp(max=1 - loss.smoothing))
    if loss.name in ("ties", "yes-no"):
        return turned
    return replace(turned, p=torch.ones_like(p)).select((p > 0.5).nonzero()[:, 0])


def _loss(head: Any, plan: Fit, data: PreferenceData, rows: Tensor, margin: Tensor | float) -> Tensor:
    """The mean loss of some pairs (or rated samples), with the gradient penalty where there is one."""
    part = data.select(rows)
    a, b = part.features[part.a], part.features[part.b]
    if plan.loss.name == "regression":
        loss = regression(head.score(a, part.users), part.p, plan.loss.huber)
    elif plan.head.kind in PERSONAL:
        loss = head.loss(a, b, part.p, part.users)
    else:
        own = margin[rows] if isinstance(margin, Tensor) else margin
        loss = preference_loss(plan.loss.name, head, a, b, part.p, part.users, own, plan.loss.k, plan.loss.centring)
    if plan.fit.lipschitz is not None:
        # Slopes are per unit of each feature's spread: the points are divided by it, and the score undoes that.
        spread = head.trunk.spread
        points = between(a / spread, b / spread)
        penalty = gradient_penalty(lambda x: head.score(x * spread, strangers(x)), points, plan.fit.lipschitz)
        loss = loss + plan.fit.lipschitz_weight * penalty
    return loss.mean()


def _measure(head: nn.Module, data: PreferenceData) -> None:
    """Give each trunk the spread of the features that it reads; a pair head sees two samples side by side."""
    rows = data.features[torch.cat([data.a, data.b]).unique()]
    for name in ("trunk", "router"):
        trunk = getattr(head, name, None)
        if trunk is not None:
            reads = trunk.mean.numel()
            trunk.measure(rows[:, :reads].repeat(1, max(1, reads // rows.shape[1])))


def _train(head: nn.Module, how: FitSettings, count: int, loss_of: Callable[[Tensor], Tensor]) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    for step in range(how.steps):
        for group in optimizer.param_groups:
            group["lr"] = how.learning_rate * 0.5 * (1 + math.cos(math.pi * step / how.steps))
        rows = torch.randperm(count)[: how.batch]
        loss = loss_of(rows)
        if not torch.isfinite(loss):
            raise GenalignError(f"the loss of step {step} is not finite; lower fit.learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
