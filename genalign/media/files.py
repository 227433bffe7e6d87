"""Samples of any medium from and to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genalign.media import MEDIA, leading
from genalign.media.container import load_sound
from genalign.media.medium import is_finite
from genalign.types import GenalignError, Media, Track, UsageError

MEDIUM_OF = {suffix: name for name, medium in MEDIA.items() for suffix in medium.SUFFIXES}


def read_media(files: Sequence[Path]) -> Media:
    """One Media of all files, which are of one medium; where every video has sound, that is a track beside them.

    Raises:
        UsageError: no file, one that is missing, damaged, or of another medium than the first or of none.
    """
    if not files:
        raise UsageError("there are no media files to score; name at least one")
    for file in files:
        if file.is_dir():
            raise UsageError(f"{file} is a folder; name the files in it, as {file}/*")
        if not file.is_file():
            raise UsageError(f"there is no media file {file}; check --media")
    kinds = {MEDIUM_OF.get(file.suffix.lower(), "") for file in files}
    if len(kinds) != 1 or "" in kinds:
        known = "; ".join(f"{name} {', '.join(medium.SUFFIXES)}" for name, medium in MEDIA.items())
        given = ", ".join(sorted({file.suffix.lower() or file.name for file in files}))
        raise UsageError(f"files must be all of one kind, not {given}; genalign reads {known}")
    (name,) = kinds
    tracks = {name: track_of([MEDIA[name].read(file) for file in files])}
    if name == "video":
        sounds = [sound for file in files if (sound := load_sound(file)) is not None]
        if len(sounds) == len(files):
            tracks["audio"] = track_of(sounds)
    return Media(**tracks)


def beside(medium: str) -> frozenset[str]:
    """The media that files of one may hold beside it: sound, of videos."""
    return frozenset({"audio"}) if medium == "video" else frozenset()


def track_of(rows: Sequence[tuple[Any, float | None]]) -> Track:
    """Rows and their rates as one Track, whose data are one tensor where shapes agree."""
    data = [row for row, _ in rows]
    tensors = [row for row in data if isinstance(row, Tensor)]
    alike = bool(data) and len(tensors) == len(data) and len({row.shape for row in tensors}) == 1
    return Track.of(torch.stack(tensors) if alike else data, [rate for _, rate in rows])


def write_sample(media: Media, row: int, stem: Path) -> Path:
    """Write what row `row` mainly is to `stem` with the suffix of its medium, a video with its sound; see `leading`.

    Raises:
        GenalignError: it holds values that are not numbers, of which no file is made.
    """
    name = leading(media)
    track, beside = media[name], media.get("audio") if name == "video" else None
    data = track.held[row]
    if not is_finite(data):
        raise GenalignError(
            f"sample {stem.name} holds {name} values that are not numbers, so it is not written; sample in float32, or "
            f"look at the adapter"
        )
    sound = None if beside is None else (beside.row(row), beside.rate_of(row))
    return MEDIA[name].write(data, track.rate_of(row), stem, sound)


def written_for(media: Media, row: int) -> str | None:
    """The text that a sample of another medium was made of (by a prompt writer), if there is one."""
    return str(media["text"].row(row)) if "text" in media and len(media) > 1 else None
