"""Judged samples: items, which of two was preferred, which of a list are right, and their media when they are read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from genalign.data.conversations import Turn, prompt_text
from genalign.data.tables import Cell
from genalign.files.untrusted import neighbour
from genalign.media import MEDIA
from genalign.media.container import header, load_sound, sound_of
from genalign.media.files import track_of
from genalign.media.form import ClipForm
from genalign.types import Media, Modality, Prompt, UsageError

Kind = Modality  # of a sample
OVERALL = "overall"
VIDEOS = 4  # that are held at a time: they are read whole, since each scorer takes frames of its own


@dataclass(frozen=True)
class Item:
    """One sample: a prompt (with a picture, where the question is about one or the sample begins with it, or a tuple of
    the first and the last frame) and its answer: a path, bytes, a text, or the frames of a clip (a tuple of any of the
    first two).

    turns: the prompt's messages, where it is more than one turn of a user. place: where the sample is named.
    """

    prompt: str
    kind: Kind
    value: Any
    picture: Any = None
    turns: tuple[Turn, ...] = ()
    place: str = ""

    def asking(self, uid: int, root: Path, user: str = "") -> Prompt:
        """The prompt, with its picture; its facts name the user, where there is one, and longer conversations."""
        facts: dict[str, Any] = {"user": user} if user else {}
        if self.turns:
            facts["messages"] = list(self.turns)
        names = self.picture if isinstance(self.picture, tuple) else (self.picture,)
        shown = [_row("image", name, root, self.place) for name in names if name is not None]
        return Prompt(self.prompt, Media(image=track_of(shown)) if shown else None, facts, uid)


@dataclass(frozen=True)
class Comparison:
    """Items a and b of one prompt; p: 1 where a is better, 0 where b is, 1/2 for a tie, or between.

    aspect: what was judged. group: the prompt. user: who judged, "" for nobody in particular. place: where it stands.
    """

    a: int
    b: int
    p: float
    group: int
    aspect: str = OVERALL
    user: str = ""
    place: str = ""


@dataclass(frozen=True)
class Listing:
    """Items of one prompt of which some are right and the others wrong (RewardBench 2)."""

    name: str
    subset: str
    right: tuple[int, ...]
    wrong: tuple[int, ...]


@dataclass
class Comparisons:
    """All that a file holds. Items are listed once each, however often they are compared.

    undecided: rows that prefer nothing and are no pair: unlabelled ones, and two equal answers.
    """

    source: str
    form: str
    root: Path
    digest: str
    items: list[Item] = field(default_factory=list)
    pairs: list[Comparison] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    ratings: dict[int, float] = field(default_factory=dict)  # item -> rating
    groups: dict[Any, int] = field(default_factory=dict)
    undecided: int = 0
    plain_kind: Kind = "text"  # of samples whose form does not say what they are
    place: str = ""  # of the row that is being read
    _places: dict[Any, int] = field(default_factory=dict)

    def group(self, name: Any) -> int:
        """The number of a prompt, new or known."""
        return self.groups.setdefault(name, len(self.groups))

    def item(
        self, prompt: str, value: Any, kind: Kind | None = None, picture: Any = None, turns: Sequence[Turn] = ()
    ) -> int:
        """The number of a sample, new or known.

        Raises:
            ValueError: an empty prompt, or no sample.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("has no text as its prompt")
        kind = kind or self.plain_kind
        if value is None or (kind == "text" and not isinstance(value, str)):
            raise ValueError(f"has no {'text' if kind == 'text' else 'path of a picture, video or sound'} for a sample")
        key = (prompt, kind, key_of(value), key_of(picture))
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(Item(prompt, kind, value, picture, tuple(turns), self.place))
        return self._places[key]

    def compare(self, a: int, b: int, p: float, group: int, aspect: str = OVERALL, user: str = "") -> None:
        """Add the verdict about two items that the present row holds."""
        self.pairs.append(Comparison(a, b, p, group, aspect, user, self.place))

    def answer(self, turns: Sequence[Turn], text: str, picture: Any = None) -> int:
        """The number of a text that answers a conversation, about a picture or several, if there are any."""
        whole = () if len(turns) == 1 and turns[0]["role"] == "user" else turns
        return self.item(prompt_text(turns), text, "text", picture, whole)

    @property
    def kind(self) -> Kind:
        return self.items[0].kind

    def at_once(self, size: int) -> int:
        """How many samples to load at a time, where `size` are wanted."""
        return min(size, VIDEOS) if self.kind == "video" else size

    def load(self, numbers: Sequence[int], users: Sequence[str] = ()) -> tuple[list[Prompt], Media]:
        """Prompts and media of some items; a prompt's facts name its user, where there is one.

        Videos come with their sound, where all of them have one.

        Raises:
            UsageError: a picture, video or sound is missing, not below the file's folder, or cannot be read.
        """
        chosen = [self.items[number] for number in numbers]
        whose = users or [""] * len(chosen)
        prompts = []
        for uid, (item, user) in enumerate(zip(chosen, whose, strict=True)):
            prompts.append(item.asking(uid, self.root, user))
        media = self.media(numbers)
        sounds = [sound for item in chosen if (sound := self._sound(item)) is not None]
        return prompts, Media(**media, audio=track_of(sounds)) if sounds and len(sounds) == len(chosen) else media

    def media(self, numbers: Sequence[int], form: ClipForm | None = None) -> Media:
        """The samples alone, clips in this form; images (3,H,W) in [0,1]."""
        rows = []
        for number in numbers:
            item = self.items[number]
            rows.append(_row(self.kind, item.value, self.root, item.place, form))
        return Media(**{self.kind: track_of(rows)})

    def files(self, item: Item) -> list[Path]:
        """The files that an item names.

        Raises:
            UsageError: one of them is missing, or not below the file's folder.
        """
        names = item.value if isinstance(item.value, tuple) else (item.value,)
        found = []
        for name in names if item.kind != "text" else ():
            if not isinstance(name, str):
                continue
            found.append(neighbour(self.root, name, item.place))
            if not found[-1].is_file():
                noun = MEDIA["image" if len(names) > 1 else item.kind].NOUN
                raise UsageError(
                    f"{item.place} names the {noun} {name!r}, which is not in {self.root}; add it or drop the line"
                )
        return found

    def check(self, numbers: Iterable[int], form: ClipForm | None) -> None:
        """Refuse files that are missing, and clips that cannot be given this form, by their headers alone.

        Raises:
            UsageError: naming the first.
        """
        for number in numbers:
            item = self.items[number]
            files = self.files(item)
            if self.kind == "video" and isinstance(item.value, str):
                found = header(files[0])
                if form is not None:
                    form.check(found, f"{files[0]} ({item.place})")

    def _sound(self, item: Item) -> tuple[Tensor, float] | None:
        """What a clip sounds like; None of other samples, and where it has no sound."""
        if item.kind != "video":
            return None
        value = item.value.read() if isinstance(item.value, Cell) else item.value
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, str | bytes):
            return None
        if isinstance(value, bytes):
            return sound_of(io.BytesIO(value), item.place)
        return load_sound(neighbour(self.root, value, item.place))


def _row(kind: Kind, value: Any, root: Path, place: str, form: ClipForm | None = None) -> tuple[Any, float | None]:
    """One sample and its rate, as its medium reads it; a clip in this form."""
    noun, where = MEDIA[kind].NOUN, f"{place} names something that is not of kind "
    if isinstance(value, Cell):
        value, where = value.read(), f"{place} has no {noun} under {value.column!r}"
    else:
        where += noun
    if form is None or kind != "video":
        return MEDIA[kind].cell(value, root, where)
    if isinstance(value, Mapping) and not value.get("bytes"):
        value = value.get("path")
    if isinstance(value, str):
        return form.load(neighbour(root, value, where), f"{root / value} ({place})")
    frames, rate = MEDIA[kind].cell(value, root, where)
    return form.fit(frames, float(rate or form.rate), place)


def key_of(value: Any) -> Any:
    """Something hashable that is equal for equal samples."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, Cell):
        return value.row, value.column
    if isinstance(value, tuple):
        return tuple(map(key_of, value))
    return value if isinstance(value, str | None) else id(value)
