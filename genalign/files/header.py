"""The header of a safetensors file, in one order: equal tensors and texts are then equal bytes.

The library itself writes the texts of a header (its metadata) in an order that changes from file to file.
"""

from __future__ import annotations

import json
from pathlib import Path

LENGTH = 8  # bytes of a file's beginning, little-endian, that say how many bytes of JSON follow
TEXTS = "__metadata__"


def sort_header(path: Path) -> None:
    """Sort the texts in the header of a .safetensors file by their names, in place; every length stays."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(LENGTH), "little")
        header = json.loads(file.read(size))
        header[TEXTS] = dict(sorted(header[TEXTS].items()))
        written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(LENGTH)
        file.write(written.ljust(size))
