"""Rewards that look at all samples together: a measure of the set, and each sample's credit for it."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.clock import spent
from genalign.ranks import gather, rank
from genalign.reward.base import Stateless, digest
from genalign.reward.heads.clip import ClipReward
from genalign.reward.heads.exemplars import read_exemplars
from genalign.reward.prefetch import Prefetch
from genalign.reward.scores import filled
from genalign.reward.sets.frechet import Frechet, Moments
from genalign.reward.sets.kernel import Coverage, KernelDistance
from genalign.reward.sets.neighbours import Precision, Recall
from genalign.reward.sets.vendi import Vendi
from genalign.types import Media, Prompt, Scores, UsageError, nearest

Name = Literal["frechet", "kernel", "coverage", "precision", "recall", "vendi"]
COUNTING: dict[str, type[Coverage] | type[Recall]] = {"coverage": Coverage, "precision": Precision, "recall": Recall}
Level = Literal["set", "sample"]
Credit = Literal["leave_one_out", "swap"]
SWEEPS = 8  # of swaps, each of which accepts as many at once as pay


class Measure(Protocol):
    """A number about rows (n,d) of float64. better: +1 where more is better, -1 where less is."""

    better: float

    def value(self, rows: Tensor) -> Tensor: ...

    def leave_one_out(self, rows: Tensor) -> Tensor:
        """(n,): the value without each row, n >= 2."""
        ...

    def swapped(self, rows: Tensor, others: Tensor) -> Tensor:
        """(n,): the value with row i, and no other, exchanged for others[i]; n >= 2."""
        ...


class SetReward(Stateless):
    """A measure of the whole batch over all ranks, on CLIP features of length 1; higher is better, distances negated.

    score = value of the set + the sample's credit, credits being centred: the mean score is the measure of the set, and
    the spread is what each sample does for it.

    measure: frechet (FID's formula), kernel (unbiased MMD^2), coverage, precision, recall, all against exemplars;
    vendi (diversity, without). exemplars: a folder of pictures, a .txt or .jsonl of texts, or file.py:function. pairs:
    pictures with their texts; where exemplars are texts, the mean difference between the two modalities is taken from
    these and added. level: "sample" scores each image alone against the exemplars (frechet, kernel). credit:
    "leave_one_out", (n - 1) (value of the set - value without the sample); "swap", for pairs of siblings (the j-th of a
    prompt's first half with the j-th of its second): n / 2 times what the better set of one of each loses by exchanging
    them, and leave_one_out where no two samples are siblings, as in an evaluation.
    components: compare on this many principal components of the exemplars only. order: of vendi, 1 or 2.

    A Frechet distance of few samples rewards lost variance: keep n >= 8 dims (by components), or take kernel. Every
    rank must call it together; rows of a rank that fails are left out.

    Raises:
        UsageError: an unknown word (the nearest is named), exemplars where there must be none, or the other way round.
    """

    needs = frozenset({"image"})

    def __init__(
        self,
        model: str | Path,
        measure: Name,
        *,
        exemplars: str | None = None,
        pairs: str | None = None,
        level: Level = "set",
        credit: Credit = "leave_one_out",
        components: int | None = None,
        order: Literal[1, 2] = 1,
        batch_size: int = 64,
        name: str | None = None,
    ) -> None:
        for what, given, known in (("measure", measure, Name), ("level", level, Level), ("credit", credit, Credit)):
            if given not in get_args(known):
                raise UsageError(f"a set reward has no {what} {given!r}{nearest(str(given), get_args(known))}")
        if (exemplars is None) != (measure == "vendi"):
            cure = "takes no exemplars; drop the key" if exemplars else "compares with exemplars; name some"
            raise UsageError(f"the measure {measure} {cure}")
        if level == "sample" and measure not in ("frechet", "kernel"):
            raise UsageError(f"the measure {measure} has no value for one sample; take frechet, kernel or level: set")
        self.clip = ClipReward(model, batch_size=batch_size)
        self.measure_name, self.level, self.credit = measure, level, credit
        self.components, self.order = components, order
        self.exemplars = None if exemplars is None else read_exemplars(exemplars)
        self.pairs = None if pairs is None else read_exemplars(pairs)
        if self.pairs is not None and not (self.pairs.pictures and self.pairs.texts):
            raise UsageError(f"{pairs} holds no pairs of picture and text")
        self.name = name or measure
        self.aspects = (self.name,)
        self.looks_at: Literal["sample", "batch"] = "sample" if level == "sample" else "batch"
        self.differentiable = measure not in COUNTING

    @cached_property
    def basis(self) -> Tensor | None:
        """(E,components): the exemplars' principal directions; None: all directions."""
        if self.components is None or self.exemplars is None:
            return None
        directions = torch.linalg.eigh(Moments.of(self._wanted).covariance).eigenvectors
        if not 0 < self.components <= len(directions):
            raise UsageError(f"components of reward {self.name!r} must lie in 1..{len(directions)}")
        return directions[:, -self.components :]

    @cached_property
    def measure(self) -> Measure:
        if self.exemplars is None:
            return Vendi(self.order)
        rows = self._wanted if self.basis is None else self._wanted @ self.basis
        if self.measure_name == "frechet":
            return Frechet(Moments.of(rows))
        return KernelDistance(rows) if self.measure_name == "kernel" else COUNTING[self.measure_name](rows)

    @cached_property
    def _wanted(self) -> Tensor:
        """(M,E) float64, the exemplars' features; texts are moved by the mean difference of the two modalities."""
        assert self.exemplars is not None
        if self.exemplars.pictures:
            return self.exemplars.seen(self.clip)
        rows = self.exemplars.read(self.clip)
        if self.pairs is None:
            return rows
        return rows + self.pairs.seen(self.clip).mean(0) - self.pairs.read(self.clip).mean(0)

    @property
    def version(self) -> str:
        sources = [None if source is None else source.digest for source in (self.exemplars, self.pairs)]
        settings = (self.measure_name, self.level, self.credit, self.components, self.order)
        return digest("set", self.name, self.clip.version, sources, settings)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        """Seeing the images; the set is measured when all of them are there."""
        return self.clip.prefetches(modalities)

    def features(self, media: Media) -> Tensor:
        """(B,d) float64 on the CPU, with gradients."""
        seen = F.normalize(self.clip.see(media).double().cpu(), dim=1)
        return seen if self.basis is None else seen @ self.basis

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        faults = self.faults(prompts, media)
        rows = [row for row, fault in enumerate(faults) if fault is None]
        siblings = (torch.arange(len(prompts)) if group is None else group.cpu())[rows]
        try:
            if len(rows) < len(faults):
                media = media.select(rows)
            seen = self.features(media) if rows else self._none()
        except Exception:
            if self.level == "set":  # the other ranks wait in `gather`: give them no rows, then fail here alone
                _everyone(self._none(), siblings[:0])
            raise
        sound = torch.isfinite(seen).all(1)
        if self.level == "sample":
            value = self.measure.better * self.measure.each(seen[sound][:, None])  # type: ignore[attr-defined]
        else:
            value = self._together(seen[sound], siblings[sound])
        total = torch.zeros(len(seen), dtype=seen.dtype).masked_scatter(sound, value).float()
        scores = Scores(self.aspects, total[:, None], sound[:, None], ~sound[:, None], total, sound, torch.ones(1))
        return filled(scores, faults) if len(rows) < len(faults) else scores

    def _none(self) -> Tensor:
        """(0,d): the features of no image."""
        width = self.clip.read(["-"]).shape[1] if self.basis is None else self.basis.shape[1]
        return torch.zeros(0, width, dtype=torch.float64)

    def _together(self, mine: Tensor, siblings: Tensor) -> Tensor:
        """(B,) scores of this rank's rows."""
        rows, group, start = _everyone(mine, siblings)
        here = slice(start, start + len(mine))
        if len(rows) == 0:
            return mine.sum(1)
        # Other ranks' rows come without a graph: only the own ones carry the gradient.
        with_graph = torch.cat([rows[: here.start], mine, rows[here.stop :]]) if mine.requires_grad else rows
        value = self.measure.better * self.measure.value(with_graph)
        credit = self._credits(rows, group)
        total = value.detach() + credit - credit.mean()
        if value.requires_grad:  # each own row carries n/b of it, so that the mean over all ranks' rows has it once
            pull = value * (len(rows) / len(mine))
            total = total + (pull - pull.detach())
        return total[here]

    def _credits(self, rows: Tensor, group: Tensor) -> Tensor:
        """(n,) what each row adds to the measure, in its unit and not yet centred; 0 of a single row."""
        credit = rows.new_zeros(len(rows))
        if len(rows) < 2:
            return credit
        first, second = couples(group).unbind(1)
        if self.credit == "leave_one_out" or len(first) < 2:
            gained = self.measure.value(rows) - self.measure.leave_one_out(rows)
            return (len(rows) - 1) * self.measure.better * gained
        wins, loss = contrast(self.measure, rows[first], rows[second])
        credit[torch.where(wins, second, first)] = len(first) / 2 * loss
        credit[torch.where(wins, first, second)] = -len(first) / 2 * loss
        return credit


def _everyone(mine: Tensor, group: Tensor) -> tuple[Tensor, Tensor, int]:
    """Rows and groups of all ranks, and where this rank's begin."""
    with spent("wait"):
        lengths = gather(torch.tensor([len(mine)]))
    return gather(mine.detach()), gather(group), int(lengths[: rank()].sum())


def couples(group: Tensor) -> Tensor:
    """(P,2) rows: the j-th sibling of the first half of each group with the j-th of the second."""
    pairs = [torch.empty(0, 2, dtype=torch.long)]
    for name in torch.unique(group):
        rows = torch.nonzero(group == name).flatten()
        half = len(rows) // 2
        pairs.append(torch.stack([rows[:half], rows[half : 2 * half]], 1))
    return torch.cat(pairs)


def contrast(measure: Measure, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """One of first[i], second[i] (P,d) for each i, so that the chosen set measures well (DRAGON, arXiv 2504.15217).

    Returns wins (P,) bool: second[i] was chosen; loss (P,) >= 0: what the chosen set loses by exchanging pair i, 0
    where it would gain. The chosen set is at least as good as either of the two.

    Departs from the paper, whose procedure is not public: the better whole set is the start, and a sweep exchanges as
    many pairs at once as still improve the set, found from all single exchanges by one eigendecomposition.
    """
    wins = torch.zeros(len(first), dtype=torch.bool)
    if measure.better * (measure.value(second) - measure.value(first)) > 0:
        wins = ~wins
    for _ in range(SWEEPS):
        chosen, others = _chosen(wins, first, second)
        best = measure.value(chosen)
        gain = measure.better * (measure.swapped(chosen, others) - best)  # (P,)
        order, many = gain.argsort(descending=True), int((gain > 1e-12).sum())
        while many:  # gains of single exchanges do not add up: halve their number until together they improve the set
            trial = wins.clone()
            trial[order[:many]] = ~wins[order[:many]]
            if measure.better * (measure.value(_chosen(trial, first, second)[0]) - best) > 0:
                break
            many //= 2
        if not many:
            return wins, (-gain).clamp(min=0)
        wins = trial
    chosen, others = _chosen(wins, first, second)
    loss = measure.better * (measure.value(chosen) - measure.swapped(chosen, others))
    return wins, loss.clamp(min=0)


def _chosen(wins: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pair the row that is in the set, and the other one."""
    return torch.where(wins[:, None], second, first), torch.where(wins[:, None], first, second)
