"""Clips that belong to prompts, checked by their headers and decoded when they are read; and folders of any medium.

A folder holds each file's prompt in a .txt of the same name, or one metadata.jsonl with the columns file_name and
prompt, text or caption, as the datasets library has them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

from torch import Tensor

from genalign.files.text import read_lines, read_text
from genalign.media import MEDIA
from genalign.media.container import header, load_video
from genalign.types import Modality, Track, UsageError


@dataclass(frozen=True)
class Clip(Sequence[Tensor]):
    """One row of a track: all frames (F,3,H,W) of a file, as levels, decoded each time that they are asked for."""

    path: Path

    def __len__(self) -> int:
        return 1

    @overload
    def __getitem__(self, row: int) -> Tensor: ...
    @overload
    def __getitem__(self, row: slice) -> list[Tensor]: ...
    def __getitem__(self, row: int | slice) -> Tensor | list[Tensor]:
        if isinstance(row, slice):
            return [self[number] for number in range(1)[row]]
        if row not in (0, -1):
            raise IndexError(row)
        return load_video(self.path, None)[0]


class FolderRows(NamedTuple):
    """rows: each file and its prompt. digest: of all names, prompts and sizes."""

    rows: list[tuple[Path, str]]
    digest: str


def clip_track(path: Path) -> Track:
    """The track of a prompt's clip, at the rate that its header says.

    Raises:
        UsageError: missing, or not a video.
    """
    return Track(Clip(path), header(path).rate)


def folder_rows(folder: Path, kind: Modality = "video") -> FolderRows | None:
    """The files of a medium in a folder whose prompts stand in .txt files beside them; None where it is no such folder.

    Raises:
        UsageError: some files have a prompt and others none, or one is empty.
    """
    if not folder.is_dir() or any(folder.glob("*.jsonl")):
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in MEDIA[kind].SUFFIXES)
    bare = [path for path in files if not path.with_suffix(".txt").is_file()]
    if not files or len(bare) == len(files):
        return None
    if bare:
        name = bare[0].with_suffix(".txt").name
        raise UsageError(f"{bare[0]} has no {name} with its prompt beside it; write one, or drop the file")
    rows, sha = [], hashlib.sha256()
    for path in files:
        text = " ".join(read_text(path.with_suffix(".txt")).split())
        if not text:
            raise UsageError(f"{path.with_suffix('.txt')} is empty; write the prompt of {path.name} into it")
        sha.update(json.dumps([path.name, text, path.stat().st_size]).encode())
        rows.append((path, text))
    return FolderRows(rows, sha.hexdigest())


def prompt_list(folder: Path) -> Path | None:
    """The metadata.jsonl of a folder, where its first row names a file and its words, and compares nothing."""
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return None
    lines = read_lines(path)
    try:
        row = json.loads(lines[0].text) if lines else None
    except ValueError:
        return None  # whoever reads it as pairs names the line
    return path if isinstance(row, dict) and "file_name" in row and "chosen" not in row else None
