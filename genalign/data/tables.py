"""Rows that somebody else wrote down: a file, a folder or a dataset of the hub as one list of mappings."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genalign.files.text import Line, decode_text, lines_of, parse_row, read_text
from genalign.files.untrusted import neighbour
from genalign.types import GenalignError, UsageError

SPLIT = "train"
FILES = (".json", ".jsonl", ".csv", ".parquet")
SHAPE = 'write one {"prompt": ..., "chosen": ..., "rejected": ...} a line'


@dataclass(frozen=True)
class Table:
    """rows: plain values, or a `Cell` where a picture waits to be opened. places: of each row, for a sentence about it.

    root: what paths in it are relative to. digest: of the file's bytes, or the fingerprint of a dataset.
    """

    source: str
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]
    root: Path
    digest: str


@dataclass(frozen=True)
class Cell:
    """A value of a dataset's row that is read, and a picture decoded, when it is asked for."""

    table: Any
    row: int
    column: str

    def read(self) -> Any:
        return self.table[self.row][self.column]


def read_table(path: Path | str) -> Table:
    """A .json, .jsonl, .csv or .parquet file, a folder with one .jsonl or a table of the datasets library, or a hub id.
    Of a folder as Music Arena has it, a row a file: battle_data/MONTH/*.json.

    Raises:
        UsageError: missing, unreadable, no such table, or the library that would read it is missing.
        GenalignError: the hub cannot be reached.
    """
    if isinstance(path, str):
        return _of_dataset(path, _from_hub(path), Path(_datasets(path).config.HF_CACHE_HOME))
    return _of_folder(path) if path.is_dir() else _of_file(path)


def is_captions(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are rows of MusicCaps (arXiv 2301.11325), which describe sounds and compare none."""
    return bool(rows) and {"ytid", "caption"} <= set(rows[0])


def _of_file(path: Path) -> Table:
    if path.suffix not in FILES:
        raise UsageError(f"{path} must end in .json, .jsonl, .csv or .parquet; convert it")
    try:
        blob = path.read_bytes()
        numbers, rows = _parse(path, blob)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except ImportError as error:
        raise UsageError(f"{path} is read by pyarrow; pip install 'genalign[datasets]'") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path} is not a {path.suffix[1:]} file: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} is not a list of rows; write a list of JSON objects, or one a line")
    unit = "line" if path.suffix == ".jsonl" else "row"
    places = [f"{unit} {number} of {path}" for number in numbers or range(1, len(rows) + 1)]
    return Table(str(path), rows, places, path.parent, hashlib.sha256(blob).hexdigest())


def _parse(path: Path, blob: bytes) -> tuple[list[int], Any]:
    """The rows, and their lines where these are not simply counted."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return [], pyarrow.parquet.read_table(path).to_pylist()
    text = decode_text(blob, path)
    if path.suffix == ".csv":
        csv.field_size_limit(max(len(text), csv.field_size_limit()))  # a cell may be as long as the file
        return [], list(csv.DictReader(io.StringIO(text, newline="")))
    if path.suffix == ".json":
        return [], json.loads(text)
    lines = lines_of(text)
    return [line.number for line in lines], [parse_row(line, path, SHAPE) for line in lines]


def _of_folder(folder: Path) -> Table:
    lists = [folder / "metadata.jsonl"] if (folder / "metadata.jsonl").is_file() else sorted(folder.glob("*.jsonl"))
    if len(lists) == 1:
        return _of_file(lists[0])
    saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    files = sorted(map(str, [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]))
    if records := sorted(folder.glob("battle_data/*/*.json")):
        return _of_records(folder, records)
    if len(lists) > 1 or not (saved or files):
        cure = f"put the prompt of each file into a .txt of its name, or {SHAPE} of a pairs.jsonl"
        raise UsageError(
            f"{folder} holds {len(lists) or 'no'} .jsonl files and no table of the datasets library; "
            f"{'name one of them' if lists else cure}"
        )
    for state in sorted(folder.glob("**/state.json")) if saved else []:
        _check_state(state)
    datasets = _datasets(str(folder))
    if saved:
        return _of_dataset(str(folder), datasets.load_from_disk(str(folder)), folder)
    together = hashlib.sha256()
    for name in files:  # what they hold, not their names and times, of which the library's fingerprint is
        with Path(name).open("rb") as file:
            together.update(hashlib.file_digest(file, "sha256").digest())
    table = datasets.load_dataset("parquet", data_files=files, split=SPLIT)
    return _of_dataset(str(folder), table, folder, together.hexdigest())


def _of_records(folder: Path, files: Sequence[Path]) -> Table:
    """A row of each file, whose paths are relative to the folder."""
    rows, sha = [], hashlib.sha256()
    for file in files:
        text = read_text(file)
        sha.update(text.encode())
        rows.append(parse_row(Line(1, text), file, "it must hold one JSON object"))
    return Table(str(folder), rows, [f"row 1 of {file}" for file in files], folder, sha.hexdigest())


def _check_state(file: Path) -> None:
    """Refuse a saved table whose rows lie elsewhere."""
    try:
        names = [str(part["filename"]) for part in json.loads(file.read_text(encoding="utf-8"))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is not part of a saved table ({error}); save it again") from error
    for name in names:
        neighbour(file.parent, name, str(file))


def _from_hub(name: str) -> Any:
    datasets = _datasets(name)
    try:
        return datasets.load_dataset(name, split=SPLIT)
    except Exception as error:  # offline, unknown, without access, of another layout: each has its own kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise GenalignError(
            f"data.prompts {name!r} is not a file or folder here and cannot be fetched as a dataset ({reason})"
        ) from error


def _datasets(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{source} is read by the datasets library; pip install 'genalign[datasets]'") from error
    return datasets


def _of_dataset(source: str, table: Any, root: Path, digest: str | None = None) -> Table:
    if isinstance(table, Mapping):  # a dictionary of splits
        if SPLIT not in table:
            raise UsageError(f"{source} has no split {SPLIT!r}, only {', '.join(table)}; save that one alone")
        table = table[SPLIT]
    digest = digest or str(table._fingerprint)
    table = table.cast(_undecoded(table.features))  # datasets would fetch what rows name
    heavy = [name for name, feature in table.features.items() if _is_picture(feature)]
    light = table.select_columns([name for name in table.column_names if name not in heavy])
    rows: list[dict[str, Any]] = [dict(row) for row in light] if light.column_names else [{} for _ in range(len(table))]
    for number, row in enumerate(rows):
        row |= {name: Cell(table, number, name) for name in heavy}
    places = [f"row {number} of {source}" for number in range(1, len(table) + 1)]
    return Table(source, rows, places, root, digest)


def _undecoded(feature: Any) -> Any:
    """The same features, with pictures and sounds as their bytes or path."""
    import datasets

    if isinstance(feature, datasets.Image | datasets.Audio):
        return type(feature)(decode=False)
    if isinstance(feature, Mapping):
        parts = {name: _undecoded(part) for name, part in feature.items()}
        return datasets.Features(parts) if isinstance(feature, datasets.Features) else parts
    if hasattr(feature, "feature"):  # a list of them
        return replace(feature, feature=_undecoded(feature.feature))
    return feature


def _is_picture(feature: Any) -> bool:
    """Whether a column holds pictures or sounds, decoded or as bytes: these are not opened before they are drawn."""
    return type(feature).__name__ in ("Image", "Audio") or getattr(feature, "dtype", None) in ("binary", "large_binary")
