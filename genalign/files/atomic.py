"""Files that are replaced as a whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, content: bytes | str) -> None:
    """Write `path` beside itself first, then put the new file in its place; text is written as UTF-8.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path to write to instead of `path`, which it replaces when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    os.replace(temporary, path)
