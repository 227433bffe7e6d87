"""Prompts: a file (or a table of preferred samples) read once, and which of them a step trains on.

Nothing here has state: the prompts of a step follow from (seed, step) alone, so a resumed run needs no cursor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from genalign.data.clips import FolderRows, clip_track, folder_rows, prompt_list
from genalign.data.conversations import is_messages, pictures_in, prompt_text, turns_of
from genalign.data.judged import Comparisons, Kind
from genalign.data.preferences import Pairs, find_pairs
from genalign.data.samples import Samples
from genalign.data.suites import is_suite, with_questions
from genalign.data.tables import is_captions, read_table
from genalign.files.text import Line, decode_text, lines_of, parse_row
from genalign.files.untrusted import neighbour
from genalign.media import MEDIA
from genalign.media.files import MEDIUM_OF, track_of
from genalign.media.image import load_png
from genalign.types import Media, Prompt, Track, UsageError


class DataSettings(BaseModel):
    """What the policy answers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompts: str
    """A .txt file, one prompt a line, or a .jsonl file, one `{"prompt": str, "facts": {...}}` a line, with a picture
    file under `image` (or a list: of the first and the last frame, or of all that a language model is shown), a clip
    under `video` or a sound under `audio`, where the method or the model takes one (in the .jsonl's folder or below).
    Or a folder of clips, each with its prompt in a .txt of the same name, or a metadata.jsonl. For `sft` without a
    reward, files of what the model makes are what it learns from; where it also begins with such a file, the one to
    learn from stands under `target`. Or pairs of which one is preferred, for methods that learn from them without a
    reward: a file, one `{"prompt": str, "chosen": "a.png", "rejected": "b.png"}` a line (of a language model the
    answers themselves, texts or lists of messages; `image` is then what both begin with, or what both are about), a
    folder with one, or a dataset's id. Or the captions of MusicCaps, or the prompts of GenEval 2 or UniGenBench with
    their questions (the fact `questions`): the authors' file, or a dataset's id."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts of one training step, over all ranks together."""
    order: Literal["shuffled", "written"] = "shuffled"
    """Which prompts a step takes: drawn without replacement, in another order each time round; or as the file has them,
    such as from easy to hard (a curriculum)."""


@dataclass(frozen=True)
class Prompts:
    """The rows of one file; a prompt's uid is its row number. `digest` is the SHA-256 of the file's bytes.

    pairs: where the rows are prompts of preferred samples, those; a uid is then the number of a pair. samples: what the
    rows bring to be learnt from, where that was asked for; a uid is then the number of a sample. numbers: the line of
    each row. order: in which rows are drawn.
    """

    path: Path | str
    rows: tuple[Prompt, ...]
    digest: str
    pairs: Pairs | None = None
    numbers: tuple[int, ...] = ()
    samples: Samples | None = None
    order: Literal["shuffled", "written"] = "shuffled"

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
        """`count` different prompts for `step`: without replacement until the file is used up, then a new order (or the
        file's own again).

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
        if self.order == "written":
            order = np.arange(len(self))
        return [self.rows[i] for i in order[place * count : (place + 1) * count]]


def read_prompts(path: Path | str, kind: Kind | None = None, learnt: bool = False) -> Prompts:
    """Read a prompt file, or the prompts of a file, folder or dataset (`owner/name`) of preferred samples.

    kind: what the samples of plain pairs are, where that is known: what the model makes. learnt: whether files of that
    kind are samples to be learnt from; they then leave the prompts, and of pairs the preferred ones are learnt from.

    Raises:
        UsageError: missing, unreadable, empty, or a line that is not a prompt (named by its number).
        GenalignError: a dataset that cannot be fetched.
    """
    taken = kind if learnt else None
    if isinstance(path, Path) and (found := folder_rows(path, taken or "video")) is not None:
        return _of_folder(path, found, taken)
    if isinstance(path, Path):
        path = prompt_list(path) or path
    pairs = find_pairs(path, kind)
    if pairs is not None:
        return Prompts(path, pairs.prompts(), pairs.digest, pairs, samples=pairs.preferred if learnt else None)
    if isinstance(path, str) or path.suffix in (".csv", ".parquet", ".json"):
        return _of_table(path)
    try:
        blob = path.read_bytes()
    except OSError as error:
        cure = f"write it ./{path.name}" if Path(path.name).exists() else "check data.prompts"
        raise UsageError(f"cannot read the prompts file {path}: {error.strerror or error}; {cure}") from error
    if path.suffix not in (".jsonl", ".txt"):
        raise UsageError(f"{path} is neither .jsonl nor .txt; name a prompts file that ends in one of them")
    lines = lines_of(decode_text(blob, path))
    if not lines:
        raise UsageError(f"the prompts file {path} is empty; write one prompt a line into it")
    digest, numbers = hashlib.sha256(blob).hexdigest(), tuple(line.number for line in lines)
    if path.suffix == ".txt":
        rows = tuple(Prompt(line.text.strip(), uid=uid) for uid, line in enumerate(lines))
        return Prompts(path, rows, digest, numbers=numbers)
    parsed = [_json_row(line, path) for line in lines]
    samples = None if taken is None else _taken(parsed, path, digest, taken)
    rows = tuple(_prompt(row, path, uid) for uid, row in enumerate(parsed))
    return Prompts(path, rows, digest, numbers=numbers, samples=samples)


def _of_table(path: Path | str) -> Prompts:
    """The captions of MusicCaps as prompts, or a public suite with its questions; find_pairs read all other tables."""
    table, rows = read_table(path), []
    for uid, (row, place) in enumerate(zip(table.rows, table.places, strict=True)):
        text: Any = row.get("caption")
        facts: dict[str, Any] = {}
        if is_suite([row]):
            text, facts = with_questions(row, place)
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{place} has no text under {'prompt' if facts else 'caption'!r}; drop it")
        rows.append(Prompt(text.strip(), facts=facts, uid=uid))
    return Prompts(path, tuple(rows), table.digest)


def _of_folder(path: Path, found: FolderRows, taken: Kind | None) -> Prompts:
    """The rows of a folder: files that the prompts bring along, or samples."""
    if taken is None:
        rows = (Prompt(text, Media(video=clip_track(clip)), uid=uid) for uid, (clip, text) in enumerate(found.rows))
        return Prompts(path, tuple(rows), found.digest)
    items = Comparisons(str(path), "folder", path, found.digest, plain_kind=taken)
    numbers = []
    for file, text in found.rows:
        items.place = str(file)
        numbers.append(items.item(text, file.name))
    rows = (Prompt(text, uid=uid) for uid, (_, text) in enumerate(found.rows))
    return Prompts(path, tuple(rows), found.digest, samples=Samples(items, tuple(numbers)))


class Row(NamedTuple):
    """A line of a .jsonl file as an object, and where it stands."""

    values: dict[str, Any]
    where: str


WANTED = 'each line must be a JSON object such as {"prompt": "two stars", "facts": {}}'


def _json_row(line: Line, path: Path) -> Row:
    where, row = f"line {line.number} of {path}", parse_row(line, path, WANTED)
    if "file_name" in row:
        row = _of_file_name(row)
    if is_captions([row]):
        row = {**row, "prompt": row["caption"]}
    if is_suite([row]):
        text, facts = with_questions(row, where)
        row = {**row, "prompt": text, "facts": facts}
    if row.get("images") and row.get("image") is None:  # as TRL calls the column
        row = {**row, "image": row["images"]}
    if is_messages(row.get("prompt")):
        row = _conversation(row, where)
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UsageError(f"{where} has no text under 'prompt'; {WANTED}")
    if not isinstance(row.get("facts") or {}, dict):
        raise UsageError(f"'facts' in {where} is not an object; {WANTED}")
    return Row(row, where)


def _taken(rows: Sequence[Row], path: Path, digest: str, kind: Kind) -> Samples | None:
    """The samples of this kind that rows bring, which leaves them without; None where no row brings one."""
    items, numbers = Comparisons(str(path), "prompts", path.parent, digest, plain_kind=kind), []
    bare = ""
    for row in rows:
        named = row.values.pop("target", None)
        value = row.values.pop(kind, None) if named is None else named
        if value is None:
            bare = bare or row.where
            continue
        if not isinstance(value, str):
            raise UsageError(f"{kind!r} in {row.where} is not the name of one file to learn from; {WANTED}")
        items.place = row.where
        numbers.append(items.item(row.values["prompt"], value))
    if numbers and bare:
        raise UsageError(f"{bare} brings no {kind} to learn from, as other lines do; give it one, or drop the line")
    return Samples(items, tuple(numbers)) if numbers else None


def _prompt(row: Row, path: Path, uid: int) -> Prompt:
    return Prompt(row.values["prompt"], _media(row, path.parent), row.values.get("facts") or {}, uid)


def _media(row: Row, folder: Path) -> Media | None:
    """The pictures, the clip and the sound that a row names."""
    values, where, tracks = row.values, row.where, {}
    if values.get("image") is not None:
        names = values["image"] if isinstance(values["image"], list) else [values["image"]]
        if not names or not all(isinstance(name, str) for name in names):
            raise UsageError(f"'image' in {where} is not the name of a picture file, or a list of some; {WANTED}")
        tracks["image"] = Track(_stacked([load_png(neighbour(folder, name, where)) for name in names]))
    for kind in ("video", "audio"):
        if values.get(kind) is not None and not isinstance(values[kind], str):
            raise UsageError(f"{kind!r} in {where} is not the name of one file; {WANTED}")
    if values.get("video") is not None:
        tracks["video"] = clip_track(neighbour(folder, values["video"], where))
    if values.get("audio") is not None:
        tracks["audio"] = track_of([MEDIA["audio"].read(neighbour(folder, values["audio"], where))])
    if len({len(track) for track in tracks.values()}) > 1:
        raise UsageError(f"{where} has several pictures and a clip or a sound; give one of each, or leave it out")
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
        turns, pictures = turns_of(row["prompt"]), pictures_in(row["prompt"])
    except (KeyError, ValueError) as error:
        raise UsageError(f"the prompt in {where} is not a list of messages of text ({error})") from error
    named = row.get("image")
    shown = len(named) if isinstance(named, list) else int(named is not None)
    if pictures and pictures != shown:
        raise UsageError(
            f"the prompt in {where} writes {pictures} pictures into its messages, and the row brings {shown} under "
            f"'image' or 'images'; name a file for each"
        )
    alone = len(turns) == 1 and turns[0]["role"] == "user"
    facts = row.get("facts") or {}
    if not alone and isinstance(facts, dict):
        facts = {**facts, "messages": turns}
    return {**row, "prompt": prompt_text(turns), "facts": facts}
