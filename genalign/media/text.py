"""Texts in files; a medium (see medium.py)."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genalign.files.atomic import replace_file
from genalign.files.text import read_text
from genalign.media.medium import Budget, Sounds

NOUN = "text"
SUFFIXES: tuple[str, ...] = (".txt",)
RANGE: tuple[float, float] | None = None


def read(path: Path) -> tuple[str, None]:
    """The whole file, which is UTF-8 (a byte-order mark is left out)."""
    return read_text(path), None


def cell(value: Any, root: Path, where: str) -> tuple[str, None]:
    return str(value), None


def write(row: str, rate: float | None, path: Path, sound: Any = None) -> Path:
    path = path if path.suffix == ".txt" else path.with_name(f"{path.name}.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, str(row).encode())
    return path


def sheet(
    base: Sequence[str],
    tuned: Sequence[str],
    drawn: Sequence[tuple[str, int]],
    path: Path,
    rate: float | None,
    sounds: Sounds | None = None,
) -> Path:
    """A .jsonl of rows {prompt, seed, base, tuned}."""
    path, lines = path.with_suffix(".jsonl"), []
    for (prompt, seed), before, after in zip(drawn, base, tuned, strict=True):
        lines.append(json.dumps({"prompt": prompt, "seed": seed, "base": before, "tuned": after}))
    replace_file(path, ("\n".join(lines) + "\n").encode())
    return path


def symptoms(rows: Sequence[str]) -> dict[str, float]:
    """`words`: how many."""
    return {"words": sum(len(str(text).split()) for text in rows) / max(len(rows), 1)}


def distance(first: str, second: str) -> float:
    ours, theirs = set(str(first).split()), set(str(second).split())
    both = ours | theirs
    return 1 - len(ours & theirs) / len(both) if both else 0.0


def extent(row: str, rate: float | None) -> float:
    return float(len(row.split()))


def decode(given: Any, rate: float | None, budget: Budget) -> tuple[str, None]:
    return str(given), None


def element(folder: Path, shown: str, label: str) -> str:
    return html.escape(shown)
