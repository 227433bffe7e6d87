"""Pairs of pictures of which one was preferred: TRL's, Pick-a-Pic's and HPDv2's columns, from a file or a table.

    {"prompt": str, "chosen": picture, "rejected": picture}                              TRL
    {"caption": str, "jpg_0": picture, "jpg_1": ..., "label_0": 1, "label_1": 0}         Pick-a-Pic; 0.5 each is a tie
    {"prompt": str, "image_path": [pictures], "human_preference": [1, 0]}                HPDv2; "rank", 1 the best, too

A picture is a path (in the file's folder or below), or in a table of the datasets library its bytes or such a path.
Ties give no pair; of more than two ranked pictures every untied two are one.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from genalign.files.untrusted import neighbour
from genalign.media.image import cell_picture
from genalign.types import GenalignError, Media, Track, UsageError

COLUMNS = (
    ("chosen", "rejected"),
    ("jpg_0", "jpg_1", "label_0", "label_1"),
    ("image_path", "human_preference"),
    ("image_path", "rank"),
)
SPLIT = "train"
SHAPE = '{"prompt": str, "chosen": "a.png", "rejected": "b.png"}'

Place = tuple[str, int | None]  # column, and place in its list


@dataclass(frozen=True)
class Pair:
    """A row of the table, and where in it the preferred picture and the other are."""

    prompt: str
    row: int
    chosen: Place
    rejected: Place


@dataclass(frozen=True)
class Pairs:
    """The pairs of one table; a pair's number is its place in `pairs`, and the uid of its prompt.

    table: rows as mappings, read when they are asked for. root: what its paths are relative to. ties: how many rows, or
    twos of a ranked row, prefer neither. rows_together: samples in one forward pass. digest: of the table.
    """

    source: str
    table: Sequence[Mapping[str, Any]]
    pairs: tuple[Pair, ...]
    root: Path
    digest: str
    ties: int = 0
    rows_together: int = field(default=2)

    def load(self, pairs: Sequence[int]) -> Media:
        """Images in [0,1], two rows a pair: the preferred one first. Sizes may differ.

        Raises:
            UsageError: a picture is missing or no picture.
        """
        images = [
            self._picture(pair, place)
            for pair in (self.pairs[number] for number in pairs)
            for place in (pair.chosen, pair.rejected)
        ]
        return Media(image=Track(images))

    def _picture(self, pair: Pair, place: Place) -> Tensor:
        column, item = place
        value = self.table[pair.row][column]
        value = value if item is None else value[item]
        return cell_picture(value, self.root, f"row {pair.row + 1} of {self.source} has no picture under {column!r}")


def find_pairs(path: Path | str) -> Pairs | None:
    """The pairs of a .jsonl file, a folder, or a dataset of the hub (`owner/name`); None where it has prompts only.

    Raises:
        UsageError: a row that is no pair, a missing picture, two equal ones, no untied pair at all, or the library that
            would read it is missing. GenalignError: the hub cannot be reached.
    """
    if isinstance(path, str):
        return _from_table(path, _from_hub(path), Path(_datasets(path).config.HF_CACHE_HOME))
    if path.is_dir():
        return _from_folder(path)
    return _from_lines(path) if path.suffix == ".jsonl" and path.is_file() else None


def _from_lines(path: Path) -> Pairs | None:
    try:
        blob = path.read_bytes()
        numbered = [(n, line) for n, line in enumerate(blob.decode().splitlines(), 1) if line.strip()]
        first: Any = json.loads(numbered[0][1]) if numbered else None
    except (OSError, ValueError):
        return None  # whoever reads it as prompts says what is wrong
    if not isinstance(first, dict) or not _kind(first):
        return None
    rows: list[dict[str, Any]] = []
    for number, line in numbered:
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"line {number} of {path} is not JSON ({error.msg}); write one {SHAPE} a line") from error
        if not isinstance(row, dict):
            raise UsageError(f"line {number} of {path} is no JSON object; write one {SHAPE} a line")
        rows.append(row)
    places = [f"line {number} of {path}" for number, _ in numbered]
    found = _collect(str(path), rows, rows, places, path.parent, hashlib.sha256(blob).hexdigest())
    for pair in found.pairs:
        _check_files(pair, rows[pair.row], places[pair.row], path.parent)
    return found


def _from_folder(folder: Path) -> Pairs | None:
    lists = [folder / "metadata.jsonl"] if (folder / "metadata.jsonl").is_file() else sorted(folder.glob("*.jsonl"))
    if len(lists) == 1:
        found = _from_lines(lists[0])
        if found is None:
            raise UsageError(f"{lists[0]} holds no pairs of pictures; write one {SHAPE} a line")
        return found
    saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    files = sorted(map(str, [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]))
    if len(lists) > 1 or not (saved or files):
        raise UsageError(
            f"{folder} holds {len(lists) or 'no'} .jsonl files and no table of the datasets library; put one "
            f"pairs.jsonl beside the pictures, with one {SHAPE} a line"
        )
    datasets = _datasets(str(folder))
    for state in sorted(folder.glob("**/state.json")) if saved else []:
        _check_state(state)
    table = datasets.load_from_disk(str(folder)) if saved else _parquet(datasets, files)
    if saved:
        return _from_table(str(folder), table, folder)
    together = hashlib.sha256()
    for name in files:  # of what they hold, not of their names and times, as the library's fingerprint is
        with open(name, "rb") as file:
            together.update(hashlib.file_digest(file, "sha256").digest())
    return _from_table(str(folder), table, folder, together.hexdigest())


def _check_state(file: Path) -> None:
    """Refuse a saved table whose rows lie elsewhere."""
    try:
        names = [str(part["filename"]) for part in json.loads(file.read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is no part of a saved table ({error}); save it again") from error
    for name in names:
        neighbour(file.parent, name, str(file))


def _parquet(datasets: Any, files: list[str]) -> Any:
    return datasets.load_dataset("parquet", data_files=files, split=SPLIT)


def _from_hub(name: str) -> Any:
    datasets = _datasets(name)
    try:
        return datasets.load_dataset(name, split=SPLIT)
    except Exception as error:  # offline, unknown, without access, of another layout: each has its own kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise GenalignError(
            f"data.prompts {name!r} is no file or folder here and cannot be fetched as a dataset ({reason})"
        ) from error


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{source} is read by the datasets library; pip install 'genalign[datasets]'") from error
    return datasets


def _from_table(source: str, table: Any, root: Path, digest: str | None = None) -> Pairs:
    if isinstance(table, Mapping):  # a dictionary of splits
        if SPLIT not in table:
            raise UsageError(f"{source} has no split {SPLIT!r}, only {', '.join(table)}; save that one alone")
        table = table[SPLIT]
    digest, table = (
        digest or str(table._fingerprint),
        table.cast(_undecoded(table.features)),
    )  # datasets would fetch what rows name
    kind = _kind(dict.fromkeys(table.column_names))
    if not kind:
        raise UsageError(
            f"{source} has the columns {', '.join(table.column_names)}, none of the pairs that genalign knows: "
            f"prompt, chosen, rejected; Pick-a-Pic's; HPDv2's"
        )
    pictures = {"chosen", "rejected", "jpg_0", "jpg_1"}  # not opened before they are drawn
    light = table.select_columns([name for name in table.column_names if name not in pictures])
    places = [f"row {number} of {source}" for number in range(1, len(table) + 1)]
    return _collect(source, table, [{**dict.fromkeys(kind), **row} for row in light], places, root, digest)


def _undecoded(feature: Any) -> Any:
    """The same features, with pictures as their bytes or path."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, Mapping):
        parts = {name: _undecoded(part) for name, part in feature.items()}
        return datasets.Features(parts) if isinstance(feature, datasets.Features) else parts
    if hasattr(feature, "feature"):  # a list of them
        return replace(feature, feature=_undecoded(feature.feature))
    return feature


def _kind(row: Mapping[str, Any]) -> tuple[str, ...]:
    return next((names for names in COLUMNS if set(names) <= set(row)), ())


def _collect(
    source: str,
    table: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    places: Sequence[str],
    root: Path,
    digest: str,
) -> Pairs:
    pairs, ties = [], 0
    for number, (row, where) in enumerate(zip(rows, places, strict=True)):
        for found in _preferences(number, row, where):
            if found is None:
                ties += 1
            else:
                pairs.append(found)
    if not pairs:
        raise UsageError(f"{source} prefers nothing: {ties} of its {len(rows)} rows are ties; add pairs that are not")
    return Pairs(source, table, tuple(pairs), root, digest, ties)


def _preferences(number: int, row: Mapping[str, Any], where: str) -> Iterator[Pair | None]:
    """The pairs of a row; None for a tie, and for two that nobody compared."""
    kind = _kind(row)
    prompt = row.get("prompt", row.get("caption"))
    if not kind or not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{where} is no pair with a prompt; write one {SHAPE} a line")
    if kind == COLUMNS[0]:
        yield Pair(prompt, number, ("chosen", None), ("rejected", None))
        return
    if kind == COLUMNS[1]:
        marks: list[Any] = [row["label_0"], row["label_1"]]
        spots: list[Place] = [("jpg_0", None), ("jpg_1", None)]
        if row.get("has_label") is False or row.get("are_different") is False:
            marks = [0.5, 0.5]
    else:
        given, marks = row["image_path"], row[kind[1]]
        if not isinstance(given, list) or not isinstance(marks, list) or not 2 <= len(given) == len(marks):
            raise UsageError(f"{where} has not one {kind[1]} for each picture of its image_path; drop the row")
        spots = [("image_path", i) for i in range(len(given))]
    if not all(isinstance(mark, int | float) and math.isfinite(mark) for mark in marks):
        raise UsageError(f"{where} prefers by {marks}, which are not all numbers; drop the row")
    if kind[1] == "rank":
        marks = [-mark for mark in marks]  # 1 is the best
    for i, j in combinations(range(len(spots)), 2):
        best, worst = (i, j) if marks[i] > marks[j] else (j, i)
        yield None if marks[i] == marks[j] else Pair(prompt, number, spots[best], spots[worst])


def _check_files(pair: Pair, row: Mapping[str, Any], where: str, root: Path) -> None:
    """Refuse paths that lead nowhere, and two that lead to equal pictures."""
    found: list[Path] = []
    for column, item in (pair.chosen, pair.rejected):
        value = row[column]
        value = value if item is None else value[item]
        if not isinstance(value, str):
            raise UsageError(f"{where} has no path of a picture under {column!r}; write one {SHAPE} a line")
        if not neighbour(root, value, where).is_file():
            raise UsageError(f"{where} names the picture {value!r}, which is not in {root}; add it or drop the line")
        found.append(root / value)
    if filecmp.cmp(found[0], found[1], shallow=False):
        raise UsageError(f"{where} prefers a picture to an equal one ({found[0].name}); drop the line")
