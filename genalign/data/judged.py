"""Judged samples: items, which of two was preferred, which of a list are right, and their media when they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from genalign.media import MEDIA
from genalign.media.files import MEDIUM_OF, track_of
from genalign.media.image import cell_picture
from genalign.types import Media, Prompt, Track

Kind = Literal["image", "video", "audio", "text"]
OVERALL = "overall"


@dataclass(frozen=True)
class Item:
    """One sample: a prompt (with a picture, where one was asked about) and what answered it: path, bytes or text."""

    prompt: str
    kind: Kind
    value: Any
    asked: Any = None


@dataclass(frozen=True)
class Comparison:
    """Items a and b of one prompt; p: 1 where a is better, 0 where b is, 1/2 for a tie, or between.

    aspect: what was judged. group: the prompt. user: who judged, "" for nobody in particular.
    """

    a: int
    b: int
    p: float
    group: int
    aspect: str = OVERALL
    user: str = ""


@dataclass(frozen=True)
class Listing:
    """Items of one prompt of which some are right and the others wrong (RewardBench 2)."""

    name: str
    subset: str
    right: tuple[int, ...]
    wrong: tuple[int, ...]


@dataclass
class Comparisons:
    """All that a file says. Items are listed once each, however often they are compared."""

    source: str
    form: str
    root: Path
    digest: str
    items: list[Item] = field(default_factory=list)
    pairs: list[Comparison] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    ratings: dict[int, float] = field(default_factory=dict)  # item -> rating
    groups: dict[Any, int] = field(default_factory=dict)
    _places: dict[Any, int] = field(default_factory=dict)

    def group(self, name: Any) -> int:
        """The number of a prompt, new or known."""
        return self.groups.setdefault(name, len(self.groups))

    def item(self, prompt: str, value: Any, kind: Kind | None = None, asked: Any = None) -> int:
        """The number of a sample, new or known."""
        told = kind or _kind_of(value)
        key = (prompt, told, key_of(value), key_of(asked))
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(Item(prompt, told, value, asked))
        return self._places[key]

    @property
    def kind(self) -> Kind:
        return self.items[0].kind

    def load(self, numbers: Sequence[int], users: Sequence[str] = ()) -> tuple[list[Prompt], Media]:
        """Prompts and media of some items; a prompt's facts name its user, where there is one.

        Raises:
            UsageError: a picture, video or sound is missing, not below the file's folder, or cannot be read.
        """
        chosen = [self.items[number] for number in numbers]
        whose = users or [""] * len(chosen)
        prompts = [
            Prompt(item.prompt, self._asked(item), {"user": user} if user else {}, uid)
            for uid, (item, user) in enumerate(zip(chosen, whose, strict=True))
        ]
        where = f"{self.source} holds a sample that cannot be read as {self.kind}"
        rows = [MEDIA[self.kind].cell(item.value, self.root, where) for item in chosen]
        return prompts, Media(**{self.kind: track_of(rows)})

    def _asked(self, item: Item) -> Media | None:
        return None if item.asked is None else Media(image=Track(self._picture(item.asked)[None]))

    def _picture(self, value: Any) -> Tensor:
        return cell_picture(value, self.root, f"{self.source} holds something that is no picture")


def _kind_of(value: Any) -> Kind:
    """What a plain row's sample is, told by its file name; anything else is text."""
    if not isinstance(value, str):
        return "image"
    suffix = MEDIUM_OF.get(Path(value).suffix.lower()) if len(value) < 500 and "\n" not in value else None
    return suffix or "text"  # type: ignore[return-value]


def key_of(value: Any) -> Any:
    """Something hashable that is equal for equal samples."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return value if isinstance(value, str | None) else id(value)
