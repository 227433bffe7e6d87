"""Rewards that look at all samples together: a measure of the set, and each sample's credit for it."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from genalign.clock import spent
from genalign.media import MEDIA
from genalign.ranks import gather, rank
from genalign.reward.base import Stateless, digest
from genalign.reward.heads.clip import ClipReward
from genalign.reward.heads.exemplars import read_exemplars, rows_of
from genalign.reward.heads.sound_features import MelFeatures, SoundFeatures, sound_features, windows
from genalign.reward.prefetch import Prefetch
from genalign.reward.scores import all_valid, filled
from genalign.reward.sets.credit import Measure, contrast, couples
from genalign.reward.sets.frechet import Frechet, FrechetInfinity, Moments
from genalign.reward.sets.kernel import Coverage, KernelDistance
from genalign.reward.sets.neighbours import Precision, Recall
from genalign.reward.sets.vendi import Vendi
from genalign.types import Media, Prompt, Scores, UsageError, nearest

Name = Literal["frechet", "frechet-infinity", "kernel", "coverage", "precision", "recall", "vendi"]
COUNTING: dict[str, type[Coverage] | type[Recall]] = {"coverage": Coverage, "precision": Precision, "recall": Recall}
Level = Literal["set", "sample"]
Credit = Literal["leave_one_out", "swap"]


class SetReward(Stateless):
    """A measure of the whole batch over all ranks, on features of pictures or sounds; distances are negated.

    score = value of the set + the sample's credit, credits being centred: the mean score is the measure of the set, and
    the spread is what each sample does for it.

    model: CLIP for pictures, CLAP or "mel" for sounds; features of CLIP and CLAP have length 1. measure: frechet (the
    formula of FID and FAD), frechet-infinity (its limit of many samples, to evaluate by), kernel (unbiased MMD^2, KAD),
    coverage, precision, recall, all against exemplars; vendi (diversity, without). exemplars: a folder of pictures or
    sounds, a .txt or .jsonl of texts, or file.py:function. pairs: pictures or sounds with their texts; where exemplars
    are texts, the mean difference between the two modalities is taken from these and added. level: "sample" scores each
    sample alone against the exemplars (frechet, kernel). windows: seconds; with level "sample" each sound is a set of
    windows that overlap by half, and so are the exemplars (per-song FAD and KAD, arXiv 2504.15217). credit:
    "leave_one_out", (n - 1) (value of the set - value without the sample); "swap", for pairs of siblings (the j-th of a
    prompt's first half with the j-th of its second): n / 2 times what the better set of one of each loses by exchanging
    them, and leave_one_out where no two samples are siblings, as in an evaluation.
    components: compare on this many principal components of the exemplars only. order: of vendi, 1 or 2.

    A Frechet distance of few samples rewards lost variance: keep n >= 8 dims (by components), or take kernel. Every
    rank must call it together; rows of a rank that fails are left out.

    Raises:
        UsageError: an unknown word (the nearest is named), exemplars where there must be none, or the other way round.
    """

    needs: AbstractSet[str] = frozenset({"image"})  # or of sound
    windows: float | None = None

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
        windows: float | None = None,
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
        self.exemplars = None if exemplars is None else read_exemplars(exemplars)
        self.pairs = None if pairs is None else read_exemplars(pairs)
        compared = [each for each in (self.exemplars, self.pairs) if each is not None]
        sounds = sound_features(model, batch_size, to_sounds=any(each.sounds for each in compared))
        self.encoder: ClipReward | SoundFeatures = (
            ClipReward(model, batch_size=batch_size) if sounds is None else sounds
        )
        self.medium = "image" if sounds is None else "audio"
        self.needs = frozenset({self.medium})
        if windows is not None:
            self.windows = float(windows)
        self.measure_name, self.level, self.credit = measure, level, credit
        self.components, self.order = components, order
        self.name = name or measure
        self._check(exemplars, pairs)
        self.aspects = (self.name,)
        self.looks_at: Literal["sample", "batch"] = "sample" if level == "sample" else "batch"
        self.differentiable = measure not in (*COUNTING, "frechet-infinity")

    def _check(self, exemplars: str | None, pairs: str | None) -> None:
        what = MEDIA[self.medium].NOUN
        for source, given in ((exemplars, self.exemplars), (pairs, self.pairs)):
            other = given and (given.sounds if self.medium == "image" else given.pictures)
            if other:
                raise UsageError(
                    f"{source} holds no {what}s, which the model of reward {self.name!r} reads; take others"
                )
        if self.pairs is not None and not (self.pairs.shown and self.pairs.texts):
            raise UsageError(f"{pairs} holds no pairs of {what} and text")
        shown = self.exemplars is not None and len(self.exemplars.shown)
        if self.windows is not None and (
            self.medium == "image" or self.level == "set" or not shown or self.windows <= 0
        ):
            raise UsageError(
                f"windows of reward {self.name!r} are seconds above 0 of sounds, compared with sounds at level: sample"
            )
        if shown == 1 and self.windows is None and self.measure_name in ("frechet", "kernel"):
            raise UsageError(f"{exemplars} holds one {what}, which has no spread to compare with; add some")

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
        if self.measure_name == "frechet-infinity":
            return FrechetInfinity(Moments.of(rows))
        return KernelDistance(rows) if self.measure_name == "kernel" else COUNTING[self.measure_name](rows)

    @cached_property
    def _wanted(self) -> Tensor:
        """(M,E) float64, the exemplars' features; texts are moved by the mean difference of the two modalities."""
        assert self.exemplars is not None
        if self.windows is not None:
            sounds = self.exemplars.batches(self.encoder.batch_size)
            with torch.no_grad():
                return torch.cat([rows for some in sounds for rows in self._windows(some)])
        if self.exemplars.shown:
            return self.exemplars.seen(self.encoder)
        rows = self.exemplars.read(self.encoder)
        if self.pairs is None:
            return rows
        return rows + self.pairs.seen(self.encoder).mean(0) - self.pairs.read(self.encoder).mean(0)

    def _windows(self, media: Media) -> Sequence[Tensor]:
        """The windows of each sound, (f,E) float64, with gradients."""
        assert self.windows is not None
        cut, counts = windows(media, self.windows)
        return rows_of(self.encoder.see(cut), self.encoder).split(counts)

    @property
    def version(self) -> str:
        sources = [None if source is None else source.digest for source in (self.exemplars, self.pairs)]
        settings = (self.measure_name, self.level, self.credit, self.components, self.order)
        of_sounds = () if self.windows is None else (self.windows,)
        return digest("set", self.name, self.encoder.version, sources, settings, *of_sounds)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        """Seeing the images; the set is measured when all of them are there."""
        return self.encoder.prefetches(modalities)

    def features(self, media: Media) -> Tensor:
        """(B,d) float64 on the CPU, with gradients."""
        seen = rows_of(self.encoder.see(media), self.encoder)
        return seen if self.basis is None else seen @ self.basis

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        faults = self.faults(prompts, media)
        rows = [row for row, fault in enumerate(faults) if fault is None]
        siblings = (torch.arange(len(prompts)) if group is None else group.cpu())[rows]
        try:
            if len(rows) < len(faults):
                media = media.select(rows)
            if self.windows is not None:
                return filled(self._by_windows(media, len(rows)), faults)
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

    def _by_windows(self, media: Media, rows: int) -> Scores:
        found = []
        for seen in self._windows(media) if rows else []:
            seen = seen if self.basis is None else seen @ self.basis
            found.append(self.measure.better * self.measure.value(seen))
        return all_valid(self.aspects, torch.stack(found)[:, None].float() if found else torch.zeros(0, 1))

    def _none(self) -> Tensor:
        """(0,d): the features of no sample."""
        if self.basis is not None:
            width = self.basis.shape[1]
        else:
            width = self.encoder.width if isinstance(self.encoder, MelFeatures) else self.encoder.read(["-"]).shape[1]
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
