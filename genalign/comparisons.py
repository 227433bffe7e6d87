"""Judged samples, as public preference sets write them: who was compared with whom, and how it ended.

Understood by their columns: Pick-a-Pic (caption, jpg_0, jpg_1, label_0, label_1), HPDv2 (train: file_path or
image_path, human_preference; test: image_path, rank), ImageRewardDB (generations, ranking; or a row a picture:
prompt_id, rank), VideoGen-RewardBench (path_A, path_B, VQ, MQ, TA, Overall), RewardBench 2 (chosen and rejected lists,
subset), VL-RewardBench (query, response, image, human_ranking), and plain rows: {"prompt", "chosen", "rejected"},
{"prompt", "a", "b", "p"} with p in [0,1] that a is better, {"prompt", "text" or "image", "rating"}. A plain row may
name its "user". In half of the sets the best has rank 1, in the others label 1: here p says it for all.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genalign.media import from_pil, load_png, load_video
from genalign.types import Media, Prompt, Track, UsageError

Kind = Literal["image", "video", "text"]
OVERALL = "overall"
SUFFIXES = {".png": "image", ".jpg": "image", ".jpeg": "image", ".webp": "image", ".bmp": "image"} | dict.fromkeys(
    (".mp4", ".webm", ".mov", ".mkv", ".gif"), "video"
)


@dataclass(frozen=True)
class Item:
    """One sample: a prompt (with a picture, where one was asked about) and what answered it: path, bytes or text."""

    prompt: str
    kind: Kind
    value: Any
    asked: Any = None


@dataclass(frozen=True)
class Comparison:
    """Items a and b of one prompt; p: 1 where a is better, 0 where b is, 1/2 for a tie, or between.

    aspect: what was judged. group: the prompt. user: who judged, "" for nobody in particular.
    """

    a: int
    b: int
    p: float
    group: int
    aspect: str = OVERALL
    user: str = ""


@dataclass(frozen=True)
class Listing:
    """Items of one prompt of which some are right and the others wrong (RewardBench 2)."""

    name: str
    subset: str
    right: tuple[int, ...]
    wrong: tuple[int, ...]


@dataclass
class Comparisons:
    """All that a file says. Items are listed once each, however often they are compared."""

    source: str
    form: str
    root: Path
    digest: str
    items: list[Item] = field(default_factory=list)
    pairs: list[Comparison] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    ratings: dict[int, float] = field(default_factory=dict)  # item -> rating
    groups: dict[Any, int] = field(default_factory=dict)
    _places: dict[Any, int] = field(default_factory=dict)

    def group(self, name: Any) -> int:
        """The number of a prompt, new or known."""
        return self.groups.setdefault(name, len(self.groups))

    def item(self, prompt: str, value: Any, kind: Kind | None = None, asked: Any = None) -> int:
        """The number of a sample, new or known."""
        told = kind or _kind_of(value)
        key = (prompt, told, _key(value), _key(asked))
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(Item(prompt, told, value, asked))
        return self._places[key]

    @property
    def kind(self) -> Kind:
        return self.items[0].kind

    def load(self, numbers: Sequence[int], users: Sequence[str] = ()) -> tuple[list[Prompt], Media]:
        """Prompts and media of some items; a prompt's facts name its user, where there is one.

        Raises:
            UsageError: a picture or video is missing, or no such thing.
        """
        chosen = [self.items[number] for number in numbers]
        whose = users or [""] * len(chosen)
        prompts = [
            Prompt(item.prompt, self._asked(item), {"user": user} if user else {}, uid)
            for uid, (item, user) in enumerate(zip(chosen, whose, strict=True))
        ]
        if self.kind == "text":
            return prompts, Media(text=Track([str(item.value) for item in chosen]))
        if self.kind == "video":
            films = [load_video(self.root / str(item.value)) for item in chosen]
            return prompts, Media(video=Track([frames for frames, _ in films], films[0][1]))
        images = [self._picture(item.value) for item in chosen]
        alike = len({image.shape for image in images}) == 1
        return prompts, Media(image=Track(torch.stack(images) if alike else images))

    def _asked(self, item: Item) -> Media | None:
        return None if item.asked is None else Media(image=Track(self._picture(item.asked)[None]))

    def _picture(self, value: Any) -> Tensor:
        import PIL.Image

        if isinstance(value, Mapping):  # datasets, undecoded
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return load_png(self.root / value)
        try:
            return from_pil(PIL.Image.open(io.BytesIO(value)) if isinstance(value, bytes) else value)
        except (OSError, AttributeError) as error:
            raise UsageError(f"{self.source} holds something that is no picture ({error}); drop that row") from error


def read_comparisons(path: Path) -> Comparisons:
    """What a .json, .jsonl, .csv or .parquet file of one of the known forms says.

    Raises:
        UsageError: missing, unreadable, of no known form, or a row that does not fit its form (named by its number).
    """
    rows, digest = _rows(path)
    form = form_of(rows[0]) if rows else None
    if form is None:
        columns = ", ".join(rows[0]) if rows else "nothing in it"
        raise UsageError(f"{path} is of no form that genalign knows ({columns}); known: {', '.join(FORMS)}")
    found = Comparisons(str(path), form, path.parent, digest)
    rows = _by_prompt(rows) if form == "ImageRewardDB by picture" else rows
    for number, row in enumerate(rows, 1):
        try:
            READERS[form](found, row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"row {number} of {path} is no row of {form} ({told}); mend or drop it") from error
    kinds = {item.kind for item in found.items}
    if len(kinds) != 1:
        raise UsageError(f"{path} compares {' and '.join(sorted(kinds)) or 'nothing'}; keep one kind of media a file")
    return found


def form_of(row: Mapping[str, Any]) -> str | None:
    """The form whose columns a row has."""
    for form, columns in FORMS.items():
        if set(columns) <= set(row) and isinstance(row[columns[-1]], list) == (form in LISTED):
            return form
    return None


def _rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    try:
        blob = path.read_bytes()
        if path.suffix == ".parquet":
            import pyarrow.parquet

            rows: Any = pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(blob.decode())))
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in blob.decode().splitlines() if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(blob)
        else:
            raise UsageError(f"{path} must end in .json, .jsonl, .csv or .parquet; convert it")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except ImportError as error:
        raise UsageError(f"{path} is read by pyarrow; pip install 'genalign[datasets]'") from error
    except ValueError as error:
        raise UsageError(f"{path} is no {path.suffix[1:]} file: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} is no list of rows; write a list of JSON objects, or one a line")
    return rows, hashlib.sha256(blob).hexdigest()


# ---- forms ----------------------------------------------------------------------------------------------------------


def _pick_a_pic(found: Comparisons, row: Mapping[str, Any]) -> None:
    if row.get("has_label") is False:
        return
    a, b = (found.item(row["caption"], row[name], "image") for name in ("jpg_0", "jpg_1"))
    share = float(row["label_0"]) / (float(row["label_0"]) + float(row["label_1"]))
    user = str(row.get("user_id") or "")
    found.pairs.append(Comparison(a, b, share, found.group(row["caption"]), user=user))


def _ranked(found: Comparisons, prompt: str, values: Sequence[Any], marks: Sequence[Any], sign: int) -> None:
    """Every two of a list; sign: +1 where the better one has the higher mark, -1 where it has the lower."""
    if len(values) != len(marks) or len(values) < 2:
        raise ValueError("it has not one mark for each of two or more samples")
    numbers = [found.item(prompt, value, "image") for value in values]
    for i, j in combinations(range(len(values)), 2):
        lead = sign * (float(marks[i]) - float(marks[j]))
        p = 0.5 if lead == 0 else float(lead > 0)
        found.pairs.append(Comparison(numbers[i], numbers[j], p, found.group(prompt)))


def _hpd_train(found: Comparisons, row: Mapping[str, Any]) -> None:
    _ranked(found, row["prompt"], row.get("file_path") or row["image_path"], row["human_preference"], 1)


def _hpd_test(found: Comparisons, row: Mapping[str, Any]) -> None:
    _ranked(found, row["prompt"], row["image_path"], row["rank"], -1)


def _image_reward(found: Comparisons, row: Mapping[str, Any]) -> None:
    _ranked(found, row["prompt"], row["generations"], row["ranking"], -1)


def _by_prompt(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """ImageRewardDB's rows of one picture each, as rows of one prompt each."""
    merged: dict[Any, dict[str, Any]] = {}
    for row in rows:
        into = merged.setdefault(row["prompt_id"], {"prompt": row["prompt"], "generations": [], "ranking": []})
        into["generations"].append(row.get("image") or row["image_path"])
        into["ranking"].append(row["rank"])
    return [row for row in merged.values() if len(row["ranking"]) > 1]


def _videogen(found: Comparisons, row: Mapping[str, Any]) -> None:
    a, b = (found.item(row["prompt"], row[name], "video") for name in ("path_A", "path_B"))
    for aspect in ("VQ", "MQ", "TA", "Overall"):
        p = {"A": 1.0, "B": 0.0, "same": 0.5}.get(row[aspect])
        if p is not None:  # the training file marks what nobody judged
            name = OVERALL if aspect == "Overall" else aspect
            found.pairs.append(Comparison(a, b, p, found.group(row["prompt"]), name))


def _vl_reward_bench(found: Comparisons, row: Mapping[str, Any]) -> None:
    first, second = row["response"]
    a, b = (found.item(row["query"], text, "text", row["image"]) for text in (first, second))
    ranks = row["human_ranking"]
    p = 0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1])
    found.pairs.append(Comparison(a, b, p, found.group((row["query"], _key(row["image"])))))


def _reward_bench_2(found: Comparisons, row: Mapping[str, Any]) -> None:
    right, wrong = ([found.item(row["prompt"], text, "text") for text in row[key]] for key in ("chosen", "rejected"))
    group = found.group(row["prompt"])
    found.pairs += [Comparison(a, b, 1.0, group) for a, b in product(right, wrong)]
    name, subset = str(row.get("id", group)), str(row["subset"])
    found.listings.append(Listing(name, subset, tuple(right), tuple(wrong)))


def _chosen(found: Comparisons, row: Mapping[str, Any]) -> None:
    _plain(found, {**row, "a": row["chosen"], "b": row["rejected"], "p": 1.0})


def _plain(found: Comparisons, row: Mapping[str, Any]) -> None:
    a, b = (found.item(row["prompt"], row[key]) for key in ("a", "b"))
    p = float(row["p"])
    if not 0 <= p <= 1 or a == b:
        raise ValueError("two different samples and a p in [0,1] are wanted")
    aspect, user = str(row.get("aspect", OVERALL)), str(row.get("user", ""))
    found.pairs.append(Comparison(a, b, p, found.group(row["prompt"]), aspect, user))


def _rated(found: Comparisons, row: Mapping[str, Any]) -> None:
    number = found.item(row["prompt"], row["image"] if "image" in row else row["text"])
    found.ratings[number] = float(row["rating"])


FORMS = {  # whose last column is a list where LISTED says so
    "Pick-a-Pic": ("caption", "jpg_0", "jpg_1", "label_0", "label_1"),
    "HPDv2 train": ("prompt", "human_preference"),
    "HPDv2 test": ("prompt", "image_path", "rank"),
    "ImageRewardDB": ("prompt", "generations", "ranking"),
    "ImageRewardDB by picture": ("prompt", "prompt_id", "rank"),
    "VideoGen-RewardBench": ("prompt", "path_A", "path_B", "VQ", "MQ", "TA", "Overall"),
    "VL-RewardBench": ("query", "image", "response", "human_ranking"),
    "RewardBench 2": ("prompt", "subset", "chosen", "rejected"),
    "chosen and rejected": ("prompt", "chosen", "rejected"),
    "a, b and p": ("prompt", "a", "b", "p"),
    "ratings": ("prompt", "rating"),
}
LISTED = ("HPDv2 train", "HPDv2 test", "ImageRewardDB", "VL-RewardBench", "RewardBench 2")
READERS = dict(
    zip(
        FORMS,
        (
            *(_pick_a_pic, _hpd_train, _hpd_test, _image_reward, _image_reward, _videogen, _vl_reward_bench),
            *(_reward_bench_2, _chosen, _plain, _rated),
        ),
        strict=True,
    )
)


def _kind_of(value: Any) -> Kind:
    """What a plain row's sample is, told by its file name; anything else is text."""
    if not isinstance(value, str):
        return "image"
    suffix = SUFFIXES.get(Path(value).suffix.lower()) if len(value) < 500 and "\n" not in value else None
    return suffix or "text"  # type: ignore[return-value]


def _key(value: Any) -> Any:
    """Something hashable that is equal for equal samples."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return value if isinstance(value, str | None) else id(value)
