"""Prompts: a file (or a table of preferred pictures) read once, and which of them a step trains on.

Nothing here has state: the prompts of a step follow from (seed, step) alone, so a resumed run needs no cursor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from genalign.data.preferences import Pairs, find_pairs
from genalign.files.untrusted import neighbour
from genalign.media.image import load_png
from genalign.types import Media, Prompt, Track, UsageError


class DataSettings(BaseModel):
    """What is asked of the policy."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompts: str
    """A .txt file, one prompt a line, or a .jsonl file, one `{"prompt": str, "facts": {...}}` a line, with a picture
    file under `image` where the method or the model takes one (in the .jsonl's folder or below). Or pairs of
    pictures with the preferred one named, for methods that learn from them without a reward: a .jsonl file, one
    `{"prompt": str, "chosen": "a.png", "rejected": "b.png"}` a line, a folder with one, or a dataset's id."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts of one training step, over all ranks together."""


@dataclass(frozen=True)
class Prompts:
    """The rows of one file; a prompt's uid is its row number. `digest` is the SHA-256 of the file's bytes.

    pairs: where the rows are prompts of preferred pictures, those; a uid is then the number of a pair.
    """

    path: Path | str
    rows: tuple[Prompt, ...]
    digest: str
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.rows)

    def facts(self) -> set[str]:
        """Names of the facts that every row carries."""
        return set.intersection(*(set(row.facts) for row in self.rows))

    def draw(self, step: int, count: int, seed: int) -> list[Prompt]:
        """`count` different prompts for `step`: without replacement until the file is used up, then a new order.

        The len(self) % count rows that would straddle two orders wait for the next one, so no step asks twice.

        Raises:
            UsageError: the file has fewer rows than `count`.
        """
        if count > len(self):
            raise UsageError(
                f"data.prompts_per_step is {count} but {self.path} has {len(self)} prompts; lower it or add prompts"
            )
        epoch, place = divmod(step, len(self) // count)
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        return [self.rows[i] for i in order[place * count : (place + 1) * count]]


def read_prompts(path: Path | str) -> Prompts:
    """Read a prompt file, or the prompts of a file, folder or dataset (`owner/name`) of preferred pictures.

    Raises:
        UsageError: missing, unreadable, empty, or a line that is no prompt (named by its number).
        GenalignError: a dataset that cannot be fetched.
    """
    pairs = find_pairs(path)
    if pairs is not None:
        rows = tuple(Prompt(pair.prompt, uid=uid) for uid, pair in enumerate(pairs.pairs))
        return Prompts(path, rows, pairs.digest, pairs)
    assert isinstance(path, Path)
    try:
        blob = path.read_bytes()
        lines = blob.decode().splitlines()
    except OSError as error:
        raise UsageError(
            f"cannot read the prompts file {path}: {error.strerror or error}; check data.prompts"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text; a prompts file has one prompt or JSON object a line") from error
    if path.suffix not in (".jsonl", ".txt"):
        raise UsageError(f"{path} is neither .jsonl nor .txt; name a prompts file that ends in one of them")
    parse = _json_row if path.suffix == ".jsonl" else _text_row
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    rows = tuple(
        parse(line, uid, f"line {number} of {path}", path.parent) for uid, (number, line) in enumerate(numbered)
    )
    if not rows:
        raise UsageError(f"the prompts file {path} is empty; write one prompt a line into it")
    return Prompts(path, rows, hashlib.sha256(blob).hexdigest())


def _text_row(line: str, uid: int, where: str, folder: Path) -> Prompt:
    return Prompt(line.strip(), uid=uid)


def _json_row(line: str, uid: int, where: str, folder: Path) -> Prompt:
    wanted = 'each line must be a JSON object such as {"prompt": "two stars", "facts": {}}'
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON ({error.msg}); {wanted}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UsageError(f"{where} has no text under 'prompt'; {wanted}")
    if not isinstance(row.get("facts") or {}, dict):
        raise UsageError(f"'facts' in {where} is not an object; {wanted}")
    picture = row.get("image")
    if picture is not None and not isinstance(picture, str):
        raise UsageError(f"'image' in {where} is not the name of a picture file; {wanted}")
    media = None if picture is None else Media(image=Track(load_png(neighbour(folder, picture, where))[None]))
    return Prompt(row["prompt"], media, row.get("facts") or {}, uid)
