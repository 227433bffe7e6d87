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
LEVELS = 255  # of a colour in 8 bits
CHUNK = 2**22  # values that are converted at a time: 16 MiB of floats, three frames of 480x832
Held = Tensor | Sequence[Any]


@dataclass(frozen=True)
class Track:
    """One modality of a batch.

    `held`: what is kept. Image (B,3,H,W) and video (B,F,3,H,W) in [0,1], or as uint8 levels of 0 to 255, a quarter of
    the bytes; audio (B,C,N) in [-1,1]; text a list of B strings. A tensor where shapes agree (autograd is kept), else a
    list, or any sequence, of B tensors without the batch axis. `rate`: frames or samples a second, None for image and
    text, and where the rows differ in it: `rates` are then those of each row. `ids`: of texts that a language model
    made, their tokens. `device`: where levels are read to; None: where they lie.

    `data`, `row` and iteration give floats, whatever is held: levels divided by 255.
    """

    held: Held
    rate: float | None = None
    ids: Sequence[Sequence[int]] | None = None
    rates: tuple[float | None, ...] | None = None
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.held)

    @classmethod
    def of(
        cls,
        held: Held,
        rates: Sequence[float | None],
        ids: Sequence[Sequence[int]] | None = None,
        device: torch.device | None = None,
    ) -> Track:
        """Rows of these rates: one `rate` where they agree."""
        if len(set(rates)) < 2:
            return cls(held, next(iter(rates), None), ids, None, device)
        return cls(held, None, ids, tuple(rates), device)

    @property
    def data(self) -> Tensor | list[Tensor] | list[str]:
        """All rows at once. Of levels this is a copy of four times the bytes: read long videos by `row`."""
        if isinstance(self.held, Tensor):
            return as_floats(self.held, self.device)
        if isinstance(self.held, list) and not self.is_levels:
            return self.held
        return [as_floats(row, self.device) for row in self.held]

    def row(self, number: int, frames: slice | Sequence[int] = slice(None)) -> Any:
        """One row: a tensor without the batch axis, of a video the chosen frames alone; or a text."""
        row = self.held[number]
        return row if isinstance(row, str) else as_floats(row if frames == slice(None) else row[frames], self.device)

    def __iter__(self) -> Iterator[Any]:
        """The rows one by one, each converted when its turn comes."""
        return (self.row(number) for number in range(len(self)))

    def rate_of(self, row: int) -> float | None:
        return self.rate if self.rates is None else self.rates[row]

    def select(self, rows: Sequence[int]) -> Track:
        rates = [self.rate_of(row) for row in rows] or [self.rate]
        if isinstance(self.held, Tensor):
            chosen = torch.as_tensor(list(rows), dtype=torch.long, device=self.held.device)
            return Track.of(self.held[chosen], rates, device=self.device)
        ids = None if self.ids is None else [self.ids[i] for i in rows]
        return Track.of([self.held[i] for i in rows], rates, ids, self.device)

    def shapes(self) -> set[tuple[int, ...]]:
        """Those of its rows, without the batch axis; none of a text."""
        if isinstance(self.held, Tensor):
            return {tuple(self.held.shape[1:])}
        rows = self.held if isinstance(self.held, list) else []  # other sequences read their rows when they are asked
        return {tuple(row.shape) for row in rows if isinstance(row, Tensor)}

    def as_levels(self) -> Track:
        """The same rows as levels on the CPU, to the nearest of 256, read back to where they were.

        Rows with a graph, and values that are not numbers or lie outside [0,1], which levels could not show, stay as
        they are.
        """
        rows = self.held if isinstance(self.held, Tensor | list) else []
        tensors = [row for row in rows if isinstance(row, Tensor)]
        if not tensors or len(tensors) < len(self) or not all(_fits_levels(row) for row in tensors):
            return self
        levels: Held
        if isinstance(self.held, Tensor):
            levels = torch.empty(self.held.shape, dtype=torch.uint8)
            for there, row in zip(levels, tensors, strict=True):
                _fill(there, row)
        else:
            levels = [to_levels(row) for row in tensors]
        return Track(levels, self.rate, None, self.rates, self.device or tensors[0].device)

    @property
    def is_levels(self) -> bool:
        """Whether any row is held as levels."""
        rows = [self.held] if isinstance(self.held, Tensor) else self.held
        return isinstance(rows, list) and any(_is_levels(row) for row in rows)


def as_floats(row: Tensor, device: torch.device | None = None) -> Tensor:
    """Levels as floats in [0,1] on `device`; floats as they are, where they are."""
    if not _is_levels(row):
        return row
    return (row if device is None else row.to(device)).float().div(LEVELS)


def to_levels(row: Tensor) -> Tensor:
    """(...) in [0,1] -> uint8 on the CPU; levels as they are. A video (F,3,H,W) is converted some frames at a time."""
    if _is_levels(row):
        return row.cpu()
    levels = torch.empty(row.shape, dtype=torch.uint8)
    _fill(levels, row)
    return levels


def in_chunks(row: Tensor) -> tuple[Tensor, ...]:
    """Views of a row, in order, along its first axis: of a video some frames each, one at least."""
    return row.split(max(1, CHUNK // max(1, row[:1].numel())))


def _fill(levels: Tensor, row: Tensor) -> None:
    for there, part in zip(in_chunks(levels), in_chunks(row.detach()), strict=True):
        there.copy_(part if _is_levels(part) else part.float().clamp(0, 1).mul(LEVELS).round())


def _is_levels(row: Any) -> bool:
    return isinstance(row, Tensor) and row.dtype == torch.uint8


def _fits_levels(row: Tensor) -> bool:
    if _is_levels(row) or not row.numel():
        return True
    least, most = (float(edge) for edge in torch.aminmax(row.detach()))
    return not row.requires_grad and least >= 0 and most <= 1  # also NaN


class Media(Mapping[str, Track]):
    """What a policy made, or what a prompt brings along: modality -> Track, all of one length B."""

    def __init__(self, **tracks: Track) -> None:
        unknown = [name for name in tracks if name not in MODALITIES]
        if unknown:
            raise UsageError(f"unknown modality {unknown[0]!r}; genalign knows {', '.join(MODALITIES)}")
        for name, (form, axes, colours) in ROWS.items():
            if name in tracks and colours is None and tracks[name].is_levels:
                raise UsageError(f"{name} is held as uint8, which only pictures and videos are; give floats in [-1,1]")
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

    def compact(self) -> Media:
        """The same with its videos as levels on the CPU, as `Track.as_levels` makes them; all else is the same."""
        return Media(**{name: track.as_levels() if name == "video" else track for name, track in self.items()})

    @staticmethod
    def cat(parts: Sequence[Media]) -> Media:
        """Join batches of the same modalities and rates; tensors are concatenated where shapes agree, else listed."""
        joined: dict[str, Track] = {}
        for name in parts[0]:
            same = len({part[name].is_levels for part in parts}) == 1
            datas = [part[name].held if same else part[name].data for part in parts]
            tensors = [d for d in datas if isinstance(d, Tensor)]
            device = next((part[name].device for part in parts if part[name].device is not None), None)
            rates: list[float | None] = []
            for part in parts:
                rates += [part[name].rate_of(row) for row in range(len(part[name]))]
            rates = rates or [parts[0][name].rate]
            if len(tensors) == len(datas) and len({d.shape[1:] for d in tensors}) == 1:
                joined[name] = Track.of(torch.cat(tensors), rates, device=device)
            else:
                rows = [row for d in datas for row in d]
                ids = _joined_ids([part[name] for part in parts])
                joined[name] = Track.of(rows, rates, ids, device)
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

    text: the prompt. media: what the sample begins with, or None: as `image` an edit source or a first frame, and where
    there are two rows of it also the last frame; as `video` a clip, and as `audio` a sound, to go by (one row); of a
    language model all that it is shown, of any number of rows. facts: whatever a reward may check (answer, scene,
    exemplar id); read-only. uid: its row number in the data file: the group of its samples, and part of their seeds, so
    that neither batch size nor world size changes what is drawn.
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
