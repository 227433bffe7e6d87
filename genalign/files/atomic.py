"""Files that are replaced as a whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, content: bytes | str, *, sync: bool = False) -> None:
    """Write `content` (text as UTF-8) beside `path`, then put it in its place.

    sync: also wait until it is on the disk, for what a run cannot do without after a power cut.

    Raises:
        OSError: it cannot be written; what stood there stays.
    """
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(draft, path)
    if sync:
        sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path to write to instead of `path`, which it replaces when the block ends without an error."""
    draft = path.with_name(f".{path.name}.tmp")
    yield draft
    os.replace(draft, path)
