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
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

from genalign.data.judged import OVERALL, Comparison, Comparisons, Listing, key_of
from genalign.types import UsageError


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
            csv.field_size_limit(max(len(blob), csv.field_size_limit()))
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
    found.pairs.append(Comparison(a, b, p, found.group((row["query"], key_of(row["image"])))))


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
    rating = float(row["rating"])
    if not math.isfinite(rating):
        raise ValueError(f"its rating {rating} is not a finite number")
    found.ratings[number] = rating


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
