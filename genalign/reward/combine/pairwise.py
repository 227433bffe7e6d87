"""Preferences between two samples, and the rewards that they become: a win rate among siblings, or against a reference.

A preference gives, of rows a and b, how likely a is preferred, as a logit; the logit of (b, a) is minus that of (a, b).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.reward.base import Scope, Stateless, digest
from genalign.reward.guard import guarded
from genalign.reward.wrapper import with_defaults
from genalign.types import CoreReward, Media, Prompt, Scores, Track, UsageError


class Verdict(NamedTuple):
    """logit (B,) of a over b, 0 and never read where not valid. valid, failed: (B,) bool; neither where it abstains."""

    logit: Tensor
    valid: Tensor
    failed: Tensor


@runtime_checkable
class Preference(Protocol):
    """Compares samples of equal prompts, row by row. needs: names it reads, as of a reward."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def differentiable(self) -> bool: ...

    @property
    def version(self) -> str: ...

    def compare(self, prompts: Sequence[Prompt], a: Media, b: Media) -> Verdict: ...


def lacking(preference: Preference, offered: AbstractSet[str]) -> frozenset[str]:
    """What is not `offered` and keeps it from comparing: of a preference made of a reward, what that one lacks."""
    if isinstance(preference, BothOrders):
        return lacking(preference.preference, offered)
    return preference.reward.lacks(offered) if isinstance(preference, Embedded) else preference.needs - offered


class Embedded:
    """A preference that embeds each sample once, by a reward, and compares embeddings: n calls for n^2 pairs.

    reward: scores samples alone. tau: the temperature that logits are divided by, above 0.

    Raises:
        UsageError: the reward looks at siblings, or tau is not above 0.
    """

    kind: str

    def __init__(self, reward: CoreReward, *, tau: float = 1.0, name: str | None = None) -> None:
        if reward.looks_at != "sample":
            raise UsageError(
                f"reward {reward.name!r} looks at a whole {reward.looks_at}; a preference compares samples"
            )
        if not tau > 0:
            raise UsageError(f"tau of {self.kind} is {tau}; it must be above 0")
        self.reward, self.tau, self.name = with_defaults(reward), float(tau), name or reward.name

    @property
    def needs(self) -> frozenset[str]:
        return self.reward.needs

    @property
    def differentiable(self) -> bool:
        return self.reward.differentiable

    @property
    def version(self) -> str:
        return digest(self.kind, self.name, self.reward.version, self.tau)

    def embed(self, prompts: Sequence[Prompt], media: Media) -> tuple[Tensor, Tensor, Tensor]:
        """What is compared of each row (B,D), where it is valid (B,), and where it failed (B,)."""
        raise NotImplementedError

    def logit(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., D), (..., D) -> (...,)."""
        raise NotImplementedError

    def compare(self, prompts: Sequence[Prompt], a: Media, b: Media) -> Verdict:
        one, one_valid, one_failed = self.embed(prompts, a)
        two, two_valid, two_failed = self.embed(prompts, b)
        return Verdict(self.logit(one, two), one_valid & two_valid, one_failed | two_failed)


class Difference(Embedded):
    """logit = (r(a) - r(b)) / tau: Bradley-Terry on a reward's total. It knows no cycles."""

    kind = "difference"

    def embed(self, prompts: Sequence[Prompt], media: Media) -> tuple[Tensor, Tensor, Tensor]:
        scores = guarded(self.reward, prompts, media, None)
        return scores.total[:, None], scores.total_valid, scores.failed.any(1) & ~scores.total_valid

    def logit(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b)[..., 0] / self.tau


class Gpm(Embedded):
    """logit = s(a, b) / tau, s = sum_l c_l (a_2l b_2l+1 - a_2l+1 b_2l) over unit embeddings: it can hold cycles.

    The general preference model (Zhang et al., arXiv 2410.02197, section 4): a block-skew form on embeddings of
    length 1, |s| <= max c. reward: its 2m aspects are the embedding, before it is normalised. tau: the paper's 0.1.
    scales: c, one a block (None: 1).

    Departs from the paper: the scales do not depend on the prompt.
    """

    kind = "gpm"

    def __init__(
        self, reward: CoreReward, *, tau: float = 0.1, scales: Sequence[float] | None = None, name: str | None = None
    ) -> None:
        super().__init__(reward, tau=tau, name=name)
        blocks, odd = divmod(len(reward.aspects), 2)
        if odd:
            raise UsageError(f"gpm needs an even number of aspects, but reward {reward.name!r} has {2 * blocks + 1}")
        if scales is not None and len(scales) != blocks:
            raise UsageError(f"gpm of {reward.name!r} has {blocks} blocks, but {len(scales)} scales")
        self.scales = torch.ones(blocks) if scales is None else torch.tensor([float(scale) for scale in scales])

    @property
    def version(self) -> str:
        return digest(super().version, self.scales.tolist())

    def embed(self, prompts: Sequence[Prompt], media: Media) -> tuple[Tensor, Tensor, Tensor]:
        scores = guarded(self.reward, prompts, media, None)
        return F.normalize(scores.values, dim=1), scores.valid.all(1), scores.failed.any(1)

    def logit(self, a: Tensor, b: Tensor) -> Tensor:
        skew = a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2]  # (..., m)
        return (skew * self.scales).sum(-1) / self.tau


class BothOrders:
    """Makes any comparison antisymmetric: half the difference of its logits in the two orders."""

    def __init__(self, preference: Preference) -> None:
        self.preference = preference
        self.name, self.needs, self.differentiable = preference.name, preference.needs, preference.differentiable

    @property
    def version(self) -> str:
        return digest("both-orders", self.preference.version)

    def compare(self, prompts: Sequence[Prompt], a: Media, b: Media) -> Verdict:
        one, two = self.preference.compare(prompts, a, b), self.preference.compare(prompts, b, a)
        return Verdict((one.logit - two.logit) / 2, one.valid & two.valid, one.failed | two.failed)


class _FromPreference(Stateless):
    """What the two rewards share: one aspect, a probability."""

    def __init__(self, preference: Preference, name: str) -> None:
        self.preference, self.name, self.aspects = preference, name, (name,)

    @property
    def needs(self) -> frozenset[str]:
        return self.preference.needs

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        return lacking(self.preference, offered) | (self.needs - self.preference.needs - offered)

    @property
    def differentiable(self) -> bool:
        return self.preference.differentiable

    def _scores(self, p: Tensor, valid: Tensor, failed: Tensor) -> Scores:
        valid = valid & ~failed
        value = torch.where(valid, p, 0.0)
        return Scores(self.aspects, value[:, None], valid[:, None], failed[:, None], value, valid, torch.ones(1))


class WinRate(_FromPreference):
    """score = mean over a row's siblings of p(row over sibling), in [0,1]; its mean over a group is 1/2.

    SPO (Swamy et al., arXiv 2401.04056, algorithm 1): the reward of a sample is how often it is preferred to the others
    of its prompt, so that preferences need not be those of any reward. A row without comparable siblings abstains.
    """

    looks_at: Scope = "group"

    def __init__(self, preference: Preference, *, name: str = "winrate") -> None:
        super().__init__(preference, name)

    @property
    def version(self) -> str:
        return digest("winrate", self.name, self.preference.version)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        rows = len(prompts)
        alike = torch.eye(rows, dtype=torch.bool) if group is None else group[:, None].cpu() == group[None].cpu()
        first, second = torch.triu(alike, diagonal=1).nonzero(as_tuple=True)  # each pair of siblings once
        logit, valid, failed, unread = self._compare(prompts, media, first, second)
        # Each comparison counts for both: p wins for the first, 1 - p for the second.
        p = torch.where(valid, torch.sigmoid(torch.where(valid, logit, 0.0)), 0.0)
        other = torch.where(valid, 1 - p, 0.0)
        zeros = p.new_zeros(rows)
        wins = zeros.index_add(0, first, p).index_add(0, second, other)
        count = zeros.index_add(0, first, valid.to(p)).index_add(0, second, valid.to(p))
        # A row with at least one comparison is scored by it; one without failed if any of its comparisons did.
        wrong = zeros.index_add(0, first, failed.to(p)).index_add(0, second, failed.to(p)) > 0
        return self._scores(wins / count.clamp(min=1), count > 0, unread | (wrong & (count == 0)))

    def _compare(
        self, prompts: Sequence[Prompt], media: Media, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of each pair (N,): logit, valid, failed; and of each row (B,), whether it could not be read at all."""
        if isinstance(self.preference, Embedded):
            embedded, readable, unread = self.preference.embed(prompts, media)
            logit = self.preference.logit(embedded[first], embedded[second])
            return logit, readable[first] & readable[second], torch.zeros_like(readable[first]), unread
        none = torch.zeros(len(prompts), dtype=torch.bool)
        if not len(first):
            return torch.zeros(0), none[:0], none[:0], none
        of_pairs = [prompts[row] for row in first.tolist()]
        verdict = self.preference.compare(of_pairs, media.select(first.tolist()), media.select(second.tolist()))
        return verdict.logit.cpu(), verdict.valid.cpu() & ~verdict.failed.cpu(), verdict.failed.cpu(), none


class Versus(_FromPreference):
    """score = p(the sample over its reference), in [0,1]; 1/2 means level.

    reference: "prompt" (the prompt's own media, of the modality that the preference reads), "facts.KEY" (a text), or a
    function from prompts to Media (what the base drew: RewardDance, arXiv 2509.08826; OneReward, arXiv 2508.21066). A
    row without a reference abstains.
    """

    looks_at: Scope = "sample"

    def __init__(
        self, preference: Preference, reference: str | Callable[[Sequence[Prompt]], Media], *, name: str = "versus"
    ) -> None:
        super().__init__(preference, name)
        if isinstance(reference, str) and reference != "prompt" and not reference.startswith("facts."):
            raise UsageError(f"the reference of reward {name!r} is {reference!r}; write prompt or facts.KEY")
        self.reference = reference

    @property
    def needs(self) -> frozenset[str]:
        fact = isinstance(self.reference, str) and self.reference.startswith("facts.")
        return self.preference.needs | ({str(self.reference)} if fact else set())

    @property
    def version(self) -> str:
        reference = self.reference
        named = reference if isinstance(reference, str) else getattr(reference, "__qualname__", "function")
        return digest("versus", self.name, self.preference.version, named)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        rows, other = self._references(prompts, media)
        p, valid, failed = torch.zeros(len(prompts)), *torch.zeros(2, len(prompts), dtype=torch.bool)
        if rows:
            at = torch.tensor(rows)
            verdict = self.preference.compare([prompts[row] for row in rows], media.select(rows), other)
            p = p.index_put((at,), torch.sigmoid(verdict.logit.float().cpu()))
            valid, failed = valid.index_put((at,), verdict.valid.cpu()), failed.index_put((at,), verdict.failed.cpu())
        return self._scores(p, valid, failed)

    def _references(self, prompts: Sequence[Prompt], media: Media) -> tuple[list[int], Media]:
        """The rows that have a reference, and the references."""
        if not isinstance(self.reference, str):
            return list(range(len(prompts))), self.reference(prompts)
        if self.reference == "prompt":
            read = sorted(self.preference.needs & set(media))
            rows = [row for row, prompt in enumerate(prompts) if prompt.media and set(read) <= set(prompt.media)]
            held = []
            for row in rows:
                own = prompts[row].media
                assert own is not None
                held.append(Media(**{kind: own[kind] for kind in read}))
            return rows, Media.cat(held) if held else Media()
        key = self.reference.removeprefix("facts.")
        rows = [row for row, prompt in enumerate(prompts) if prompt.facts.get(key) is not None]
        return rows, Media(text=Track([str(prompts[row].facts[key]) for row in rows]))
