"""Several rewards without weights: only samples that no sibling beats in everything are learnt from (Parrot)."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from genalign.fronts import RELATIVE_FLOOR, front_ranks
from genalign.method.common import Collecting, check_noise, over_ranks, reward_log, rollout_seed, sample_and_score
from genalign.method.gradient import GradientSettings, PolicyGradient
from genalign.method.settings import MethodSettings
from genalign.ranks import all_sum
from genalign.types import Experience, Loss, Method, Policy, Prompt, Reward, Scores, Scoring, UsageError

TOTAL = "total"  # in method.tags: the reward's total, which is no objective of its own
FULL = 0.5  # a front with more than this share of the samples hardly selects


class ParetoSettings(MethodSettings):
    """Parrot: which rewards there are, the words that request each, and which samples count."""

    presets: ClassVar = {"parrot": {"group": 64}}

    tags: dict[str, str] = Field({})
    """Aspect -> the words put before a prompt to ask for it; each prompt is sampled with each. The key `total` stands
    for the reward's total, and words may be "": what a plain prompt asks for. Empty: no tags, and the objectives are
    the aspects that the reward weights."""
    keep: float | None = Field(None, gt=0, lt=1)
    """Share of a group that counts, by front and then by distance to its neighbours (NSGA-II); null: the first front,
    which selects in groups of 64 or more."""
    signal: Literal["reward", "advantage"] = "reward"
    """A counted sample's weight: the reward its tag asks for, or that reward centred and scaled among its siblings."""
    clip_nats: tuple[float, float] = (1.0, 1.0)
    """How far, down and up, a step's summed log-ratio may move before its gradient stops, in nats."""
    kl_beta: float = Field(0.0, ge=0)
    """Weight of the KL divergence from the reference per step, in nats."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.tags.values())) < len(self.tags):
            raise UsageError("two of method.tags have the same words, so no prompt can tell them apart; change one")
        return self

    def build(self, folder: Path) -> Method:
        return Parrot(self)


class Parrot(Collecting):
    """Batch-wise Pareto-optimal selection (Parrot, arXiv 2401.05675, eq. 4) with one tag a reward.

    Each prompt is sampled `group` times under each tag. Among the samples of one prompt and tag, those that no other
    one dominates in all rewards count, with the reward of their tag as the weight of their log-probabilities; the rest
    have gradient 0 and are not replayed. Rewards read the prompt without its tag. A sample for which any
    reward is missing is in no front. A policy that writes its prompt (policy/chain.py) learns both parts alike.

    Departs from the paper: (1) The loss is a policy gradient clipped in nats, divided by the steps that count over all
    ranks: for one prompt, the paper's 1/|P|. (2) The writer learns from the selected samples only, like the generator.
    (3) `keep`, signal "advantage" and a tag for the total are not in the paper, which puts all tags before a prompt
    where it wants a bit of everything.
    """

    def __init__(self, settings: ParetoSettings) -> None:
        self.settings = settings
        self.name = settings.name
        self._gradient = PolicyGradient(
            GradientSettings(
                name="grpo",
                group=max(2, settings.group),
                updates_per_rollout=settings.updates_per_rollout,
                clip_nats=settings.clip_nats,
                kl_beta=settings.kl_beta,
                advantage_clip=None,
            )
        )
        self.needs = self._gradient.needs
        self._warned = False

    def collecting(
        self, policy: Policy, prompts: Sequence[Prompt], reward: Reward | None, seed: int, step: int
    ) -> Generator[Scoring, None, Experience]:
        s = self.settings
        tagged, plain, tag_of = tag_prompts(prompts, list(s.tags.values()))
        seeds = rollout_seed(seed, step)
        trajectory, scores = yield from sample_and_score(policy, tagged, reward, s.group, seeds, self.name, shown=plain)
        check_noise(trajectory, self.name)
        group = trajectory.group.cpu()
        weighted = [name for name, weight in zip(scores.names, scores.weights, strict=True) if weight]
        names = [name for name in s.tags if name != TOTAL] or weighted
        values = objectives(scores, names)  # (B,K)
        front = nondominated(values, group)
        counted = front if s.keep is None else best_share(values, group, s.keep)
        weight = torch.where(scores.total_valid, scores.total.double(), torch.nan)
        if s.tags:
            of_tags = [weight if tag == TOTAL else values[:, names.index(tag)] for tag in s.tags]
            weight = torch.stack(of_tags, 1).gather(1, tag_of.repeat_interleave(s.group)[:, None])[:, 0]
        counted &= torch.isfinite(weight)
        if s.signal == "advantage":
            weight = among_siblings(weight, group)
        counts = torch.tensor([front.sum(), torch.isfinite(values).all(1).sum()])
        in_front, complete = all_sum(counts).tolist()
        share = in_front / max(complete, 1)
        self._warn(share, len(names))
        return Experience(
            trajectory,
            scores,
            advantage=torch.where(counted, weight, 0.0).float(),
            counted=counted,
            log={**reward_log(over_ranks(scores, group)[0]), "front/share": share},
        )

    def losses(self, policy: Policy, experience: Experience) -> Iterator[Loss]:
        return self._gradient.losses(policy, experience)

    def _warn(self, share: float, rewards: int) -> None:
        if share > FULL and self.settings.keep is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{share:.0%} of the samples are in the first front of {rewards} rewards, so it hardly selects; "
                f"raise method.group above {self.settings.group}, or set method.keep to 0.25",
                stacklevel=3,
            )


def tag_prompts(prompts: Sequence[Prompt], tags: Sequence[str]) -> tuple[list[Prompt], list[Prompt], Tensor]:
    """Each prompt with each tag, as a group of its own; the same without tags; and which tag each has, (P*K,)."""
    if not tags:
        return list(prompts), list(prompts), torch.zeros(len(prompts), dtype=torch.long)
    many = len(tags)
    tagged = [
        replace(prompt, text=f"{tag} {prompt.text}" if tag else prompt.text, uid=prompt.uid * many + k)
        for prompt in prompts
        for k, tag in enumerate(tags)
    ]
    plain = [prompt for prompt in prompts for _ in tags]
    return tagged, plain, torch.arange(many).repeat(len(prompts))


def objectives(scores: Scores, names: Sequence[str]) -> Tensor:
    """(B,K) float64, more is better: the named aspects, negated where the reward weights them below 0, NaN if missing.

    Raises:
        UsageError: fewer than two, or one that the reward does not have.
    """
    absent = next((name for name in names if name not in scores.names), None)
    if absent is not None:
        raise UsageError(f"method.tags names {absent!r}, but the reward's aspects are {', '.join(scores.names)}")
    if len(names) < 2:
        raise UsageError(
            "a Pareto front needs at least two rewards; name more aspects in method.tags (total is not one), or take "
            "grpo"
        )
    columns = [scores.names.index(name) for name in names]
    sign = torch.where(scores.weights[columns] < 0, -1.0, 1.0)
    return torch.where(scores.valid[:, columns], (scores.values[:, columns] * sign).double(), torch.nan)


def nondominated(values: Tensor, group: Tensor) -> Tensor:
    """(B,) bool: no sibling is at least as good in every column of values (B,K) and better in one.

    Equal rows stand together. A row with a value that is not finite is in no front and dominates nothing.
    """
    return front_ranks(values, group) == 0


def best_share(values: Tensor, group: Tensor, share: float) -> Tensor:
    """(B,) bool: the best `share` of each group (at least one row), by front, then by crowding distance."""
    import moocore

    mask = torch.zeros(len(values), dtype=torch.bool)
    for rows in _complete_groups(values, group):
        points = values[rows].double()
        rank = torch.from_numpy(moocore.pareto_rank(points.numpy(), maximise=True)).long()
        place = list(zip(rank.tolist(), (-crowding(points, rank)).tolist(), strict=True))
        order = sorted(range(len(rows)), key=place.__getitem__)
        mask[rows[order[: max(1, round(share * len(rows)))]]] = True
    return mask


def crowding(points: Tensor, rank: Tensor) -> Tensor:
    """(n,) how far a point's neighbours in its own front are, in shares of the front's range; inf at its ends.

    (NSGA-II, Deb et al., 2002, section III-B.)
    """
    distance = points.new_zeros(len(points))
    for front in torch.unique(rank):
        rows = torch.nonzero(rank == front).flatten()
        for column in points[rows].T:
            order = column.argsort(stable=True)
            spread = column[order[-1]] - column[order[0]]
            if spread > 0:
                distance[rows[order[1:-1]]] += (column[order[2:]] - column[order[:-2]]) / spread
            distance[rows[order[[0, -1]]]] = torch.inf
    return distance


def among_siblings(values: Tensor, group: Tensor) -> Tensor:
    """(B,) values centred and divided by the standard deviation of their group; 0 where it has no spread."""
    normal = torch.zeros_like(values)
    for rows in _complete_groups(values[:, None], group):
        own = values[rows]
        deviation = own.std() if len(own) > 1 else own.new_zeros(())
        if deviation > RELATIVE_FLOOR * own.abs().max():
            normal[rows] = (own - own.mean()) / deviation
    return normal


def _complete_groups(values: Tensor, group: Tensor) -> Iterator[Tensor]:
    """The rows of each group whose values are all finite."""
    finite = torch.isfinite(values).all(1)
    for name in torch.unique(group):
        rows = torch.nonzero((group == name) & finite).flatten()
        if len(rows):
            yield rows
