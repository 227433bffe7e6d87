"""Public prompts that come with questions about what is drawn, known by their columns: GenEval 2 and UniGenBench.

They become prompts with the fact `questions`, which `judge-questions` asks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genalign.data.tables import FILES, read_table
from genalign.types import UsageError

CURE = "take the authors' file as it is, or write --suite FILE for other prompts"

# UniGenBench's columns of a prompt and of its test points, and the keys in these of the points and of their words.
POINTS = {
    "prompt_en": ("sub_dims_en", "Testpoints", "Testpoint Description"),
    "prompt_zh": ("sub_dims_zh", "考点", "考点对应描述"),
}

COLUMNS: dict[str, list[tuple[str, ...]]] = {  # of each suite's rows; of several sets one is enough
    "geneval2": [("prompt", "vqa_list", "skills")],
    "unigenbench": [(prompt, points) for prompt, (points, *_) in POINTS.items()],
}


def check_suite(name: str, path: Path | str) -> None:
    """Refuse a file, a folder or a dataset that is not the suite `name`, one of COLUMNS, row by row.

    Raises:
        UsageError: a row without a column of it, or no table at all.
    """
    if isinstance(path, Path) and path.is_file() and path.suffix not in FILES:
        raise UsageError(f"{path} is a plain list, not the prompts of {name} with their questions; {CURE}")
    table = read_table(path)
    for row, place in zip(table.rows, table.places, strict=True):
        lacking = min(([column for column in columns if column not in row] for columns in COLUMNS[name]), key=len)
        if lacking:
            raise UsageError(f"{place} is not of {name}, which has a column {lacking[0]!r}; {CURE}")


def is_suite(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are rows of GenEval 2 (arXiv 2512.16853) or of UniGenBench (arXiv 2510.18701)."""
    if not rows:
        return False
    return {"prompt", "vqa_list"} <= set(rows[0]) or _language(rows[0]) is not None


def with_questions(row: Mapping[str, Any], place: str) -> tuple[Any, dict[str, Any]]:
    """The prompt of such a row, and its facts {"questions": [{"question", "answer", "kind"}]}.

    GenEval 2's `vqa_list` holds questions with their answers and `skills` the kind of each. UniGenBench's test points
    have a kind, "Attribute - Quantity", of which the part before the dash is kept, and words of the prompt.

    Departs from UniGenBench: its judge is asked about all points at once, and in other words.

    Raises:
        UsageError: it is not such a row after all; `place` says which.
    """
    language = _language(row)
    try:
        if language is None:
            text, asked = row["prompt"], list(zip(row["vqa_list"], row["skills"], strict=True))
            questions = [{"question": q, "answer": answer, "kind": kind} for (q, answer), kind in asked]
        else:
            text, questions = row[language], _of_points(row, language)
    except (KeyError, TypeError, ValueError) as error:
        known = "GenEval 2" if language is None else "UniGenBench"
        raise UsageError(f"{place} is not a row of {known} ({error!r}); take the authors' file as it is") from error
    return text, {"questions": questions}


def _of_points(row: Mapping[str, Any], language: str) -> list[dict[str, str]]:
    column, points, words = POINTS[language]
    held = json.loads(row[column])
    questions = []
    for point, said in zip(held[points], held[words], strict=True):
        question = f'The prompt was: "{row[language]}" Does the picture show this part of it ({point}): {said}?'
        questions.append({"question": question, "answer": "yes", "kind": point.partition("-")[0].strip()})
    return questions


def _language(row: Mapping[str, Any]) -> str | None:
    """Under which column a row of UniGenBench has its prompt; None of other rows."""
    return next((prompt for prompt, (points, *_) in POINTS.items() if {prompt, points} <= set(row)), None)
