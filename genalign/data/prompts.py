"""Prompts: a file (or a table of preferred samples) read once, and which of them a step trains on.

Nothing here has state: the prompts of a step follow from (seed, step) alone, so a resumed run needs no cursor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from genalign.data.clips import clip_rows, clip_track, prompt_list
from genalign.data.conversations import is_messages, prompt_text, turns_of
from genalign.data.preferences import Pairs, find_pairs
from genalign.files.text import Line, decode_text, lines_of, parse_row
from genalign.files.untrusted import neighbour
from genalign.media import MEDIA
from genalign.media.files import MEDIUM_OF
from genalign.media.image import load_png
from genalign.types import Media, Prompt, Track, UsageError


class DataSettings(BaseModel):
    """What the policy answers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompts: str
    """A .txt file, one prompt a line, or a .jsonl file, one `{"prompt": str, "facts": {...}}` a line, with a picture
    file under `image` (or a list of two, the first and the last frame), a clip under `video`, or a sound under `audio`,
    where the method or the model takes one (in the .jsonl's folder or below). Or a folder of clips, each with its
    prompt in a .txt of the same name, or a metadata.jsonl. Or pairs of which one is preferred, for methods that learn
    from them without a reward: a file, one `{"prompt": str, "chosen": "a.png", "rejected": "b.png"}` a line (of a
    language model the answers themselves, texts or lists of messages), a folder with one, or a dataset's id."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts of one training step, over all ranks together."""


@dataclass(frozen=True)
class Prompts:
    """The rows of one file; a prompt's uid is its row number. `digest` is the SHA-256 of the file's bytes.

    pairs: where the rows are prompts of preferred samples, those; a uid is then the number of a pair. numbers: the line
    of each row.
    """

    path: Path | str
    rows: tuple[Prompt, ...]
    digest: str
    pairs: Pairs | None = None
    numbers: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.rows)

    def place(self, uid: int) -> str:
        """Where a prompt stands, for a sentence about it."""
        if self.pairs is not None:
            return self.pairs.place(uid)
        return f"line {self.numbers[uid]} of {self.path}" if self.numbers else f"prompt {uid + 1} of {self.path}"

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


def read_prompts(path: Path | str, kind: str | None = None) -> Prompts:
    """Read a prompt file, or the prompts of a file, folder or dataset (`owner/name`) of preferred samples.

    kind: what the samples of plain pairs are, where that is known: what the model makes.

    Raises:
        UsageError: missing, unreadable, empty, or a line that is not a prompt (named by its number).
        GenalignError: a dataset that cannot be fetched.
    """
    if isinstance(path, Path) and (clips := clip_rows(path)) is not None:
        rows = tuple(
            Prompt(text, Media(video=clip_track(clip)), uid=uid) for uid, (clip, text) in enumerate(clips.rows)
        )
        return Prompts(path, rows, clips.digest)
    if isinstance(path, Path):
        path = prompt_list(path) or path
    pairs = find_pairs(path, kind)
    if pairs is not None:
        return Prompts(path, pairs.prompts(), pairs.digest, pairs)
    assert isinstance(path, Path)
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the prompts file {path}: {error.strerror or error}; check data.prompts"
        ) from error
    if path.suffix not in (".jsonl", ".txt"):
        raise UsageError(f"{path} is neither .jsonl nor .txt; name a prompts file that ends in one of them")
    lines = lines_of(decode_text(blob, path))
    if not lines:
        raise UsageError(f"the prompts file {path} is empty; write one prompt a line into it")
    if path.suffix == ".txt":
        rows = tuple(Prompt(line.text.strip(), uid=uid) for uid, line in enumerate(lines))
    else:
        rows = tuple(_json_row(line, uid, path) for uid, line in enumerate(lines))
    numbers = tuple(line.number for line in lines)
    return Prompts(path, rows, hashlib.sha256(blob).hexdigest(), numbers=numbers)


def _json_row(line: Line, uid: int, path: Path) -> Prompt:
    wanted = 'each line must be a JSON object such as {"prompt": "two stars", "facts": {}}'
    where, row = f"line {line.number} of {path}", parse_row(line, path, wanted)
    if "file_name" in row:
        row = _of_file_name(row)
    if is_messages(row.get("prompt")):
        row = _conversation(row, where)
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UsageError(f"{where} has no text under 'prompt'; {wanted}")
    if not isinstance(row.get("facts") or {}, dict):
        raise UsageError(f"'facts' in {where} is not an object; {wanted}")
    return Prompt(row["prompt"], _media(row, path.parent, where, wanted), row.get("facts") or {}, uid)


def _media(row: Mapping[str, Any], folder: Path, where: str, wanted: str) -> Media | None:
    """The pictures, the clip and the sound that a row names."""
    tracks = {}
    if row.get("image") is not None:
        names = row["image"] if isinstance(row["image"], list) else [row["image"]]
        if not 1 <= len(names) <= 2 or not all(isinstance(name, str) for name in names):
            raise UsageError(f"'image' in {where} is not the name of a picture file, or a list of two; {wanted}")
        tracks["image"] = Track(_stacked([load_png(neighbour(folder, name, where)) for name in names]))
    if row.get("video") is not None:
        if not isinstance(row["video"], str):
            raise UsageError(f"'video' in {where} is not the name of a video file; {wanted}")
        tracks["video"] = clip_track(neighbour(folder, row["video"], where))
    if row.get("audio") is not None:
        if not isinstance(row["audio"], str):
            raise UsageError(f"'audio' in {where} is not the name of a sound file; {wanted}")
        wave, rate = MEDIA["audio"].read(neighbour(folder, row["audio"], where))
        tracks["audio"] = Track(wave[None], rate)
    if len({len(track) for track in tracks.values()}) > 1:
        raise UsageError(f"{where} has two pictures beside a clip or a sound; give one of each, or the two alone")
    return Media(**tracks) if tracks else None


def _stacked(rows: list[Tensor]) -> Tensor | list[Tensor]:
    """One tensor of the rows where their shapes agree."""
    return torch.stack(rows) if len({row.shape for row in rows}) == 1 else rows


def _of_file_name(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a metadata.jsonl as the datasets library writes it: file_name, and the words as text or caption."""
    medium = MEDIUM_OF.get(Path(str(row["file_name"])).suffix.lower(), "")
    words = next((row[key] for key in ("prompt", "text", "caption") if key in row), None)
    return {**row, "prompt": words, medium: row["file_name"]}


def _conversation(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """TRL's conversational prompt: one user turn is its text; of a longer one the messages become a fact."""
    try:
        turns = turns_of(row["prompt"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"the prompt in {where} is not a list of messages of text ({error})") from error
    alone = len(turns) == 1 and turns[0]["role"] == "user"
    facts = row.get("facts") or {}
    if not alone and isinstance(facts, dict):
        facts = {**facts, "messages": turns}
    return {**row, "prompt": prompt_text(turns), "facts": facts}
