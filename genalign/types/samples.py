"""What is asked for and what was made: prompts, media of four modalities, and the seeds of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from genalign.types.errors import UsageError

Modality = Literal["image", "video", "audio", "text"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
ROWS = {"image": ("(3,H,W)", 3, 0), "video": ("(F,3,H,W)", 4, 1), "audio": ("(C,N)", 2, None)}  # form, axes, colours


@dataclass(frozen=True)
class Track:
    """One modality of a batch.

    `data`: image (B,3,H,W) and video (B,F,3,H,W) in [0,1]; audio (B,C,N) in [-1,1]; text a list of B strings. A tensor
    where shapes agree (autograd is kept), else a list of B tensors without the batch axis. `rate`: frames or samples a
    second, None for image and text, and where the rows differ in it: `rates` are then those of each row. `ids`: of
    texts that a language model made, their tokens.
    """

    data: Tensor | list[Tensor] | list[str]
    rate: float | None = None
    ids: Sequence[Sequence[int]] | None = None
    rates: tuple[float | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.data)

    @classmethod
    def of(
        cls,
        data: Tensor | list[Tensor] | list[str],
        rates: Sequence[float | None],
        ids: Sequence[Sequence[int]] | None = None,
    ) -> Track:
        """Rows of these rates: one `rate` where they agree."""
        if len(set(rates)) < 2:
            return cls(data, next(iter(rates), None), ids)
        return cls(data, None, ids, tuple(rates))

    def rate_of(self, row: int) -> float | None:
        return self.rate if self.rates is None else self.rates[row]

    def select(self, rows: Sequence[int]) -> Track:
        rates = [self.rate_of(row) for row in rows] or [self.rate]
        if isinstance(self.data, Tensor):
            return Track.of(self.data[torch.as_tensor(list(rows), dtype=torch.long, device=self.data.device)], rates)
        ids = None if self.ids is None else [self.ids[i] for i in rows]
        return Track.of([self.data[i] for i in rows], rates, ids)  # type: ignore[arg-type]

    def shapes(self) -> set[tuple[int, ...]]:
        """Those of its rows, without the batch axis; none of a text."""
        if isinstance(self.data, Tensor):
            return {tuple(self.data.shape[1:])}
        return {tuple(row.shape) for row in self.data if isinstance(row, Tensor)}


class Media(Mapping[str, Track]):
    """What a policy made, or what a prompt brings along: modality -> Track, all of one length B."""

    def __init__(self, **tracks: Track) -> None:
        unknown = [name for name in tracks if name not in MODALITIES]
        if unknown:
            raise UsageError(f"unknown modality {unknown[0]!r}; genalign knows {', '.join(MODALITIES)}")
        for name, (form, axes, colours) in ROWS.items():
            for shape in tracks[name].shapes() if name in tracks else ():
                if len(shape) != axes or (colours is not None and shape[colours] != 3):
                    raise UsageError(f"a row of {name} has shape {shape}, not {form}; mind the order of its axes")
        lengths = {name: len(track) for name, track in tracks.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"the modalities of one Media must have equal lengths, not {lengths}")
        self._tracks = tracks
        self.rows = next(iter(lengths.values()), 0)  # B

    def __getitem__(self, name: str) -> Track:
        return self._tracks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tracks)

    def __len__(self) -> int:
        """Number of modalities (a Media is a mapping); the batch size is `rows`."""
        return len(self._tracks)

    def select(self, rows: Sequence[int]) -> Media:
        """The given rows, in the given order."""
        return Media(**{name: track.select(rows) for name, track in self.items()})

    @staticmethod
    def cat(parts: Sequence[Media]) -> Media:
        """Join batches of the same modalities and rates; tensors are concatenated where shapes agree, else listed."""
        joined: dict[str, Track] = {}
        for name in parts[0]:
            datas = [part[name].data for part in parts]
            tensors = [d for d in datas if isinstance(d, Tensor)]
            rates: list[float | None] = []
            for part in parts:
                rates += [part[name].rate_of(row) for row in range(len(part[name]))]
            rates = rates or [parts[0][name].rate]
            if len(tensors) == len(datas) and len({d.shape[1:] for d in tensors}) == 1:
                joined[name] = Track.of(torch.cat(tensors), rates)
            else:
                rows = [row for d in datas for row in d]
                joined[name] = Track.of(rows, rates, _joined_ids([part[name] for part in parts]))  # type: ignore[arg-type]
        return Media(**joined)


def _joined_ids(tracks: Sequence[Track]) -> list[Sequence[int]] | None:
    """The tokens of all texts; None where those of one part are not known."""
    joined: list[Sequence[int]] = []
    for track in tracks:
        if track.ids is None:
            return None
        joined += track.ids
    return joined


@dataclass(frozen=True)
class Prompt:
    """What is asked for.

    text: the prompt. media: input image or edit source (one row), or None. facts: whatever a reward may check (answer,
    scene, exemplar id); read-only. uid: its row number in the data file: the group of its samples, and part of
    their seeds, so that neither batch size nor world size changes what is drawn.
    """

    text: str
    media: Media | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    uid: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", MappingProxyType(dict(self.facts)))


def sample_seed(seed: int, uid: int, k: int) -> int:
    """Seed (63 bits) of the k-th sample of prompt `uid` under run seed `seed`, on any rank and in any batch."""
    digest = hashlib.sha256(f"{seed}/{uid}/{k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


SIBLING_BITS = 16


def sibling_seed(seed: int, uid: int, k: int) -> int:
    """Like sample_seed, but the samples of one prompt differ in the last SIBLING_BITS bits alone, never all 0."""
    return family_seed(sample_seed(seed, uid, 0)) | (k + 1)


def family_seed(seed: int) -> int:
    """What siblings by sibling_seed have in common may be drawn from this; it is nobody's own seed."""
    return seed >> SIBLING_BITS << SIBLING_BITS
