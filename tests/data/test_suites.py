"""Rows in the columns of GenEval 2 and UniGenBench, as their repositories document them, as prompts with questions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from genalign.data.prompts import read_prompts
from genalign.data.suites import check_suite
from genalign.types import UsageError

GENEVAL = {  # the example of its README
    "prompt": "four white bicycles in front of three plastic cows",
    "atom_count": 7,
    "vqa_list": [["How many bicycles are in the image?", "four"], ["Are the bicycles white?", "Yes"]],
    "skills": ["count", "attribute"],
}
POINTS = {
    "Primary Categories": "Art",
    "Testpoints": ["Style", "Attribute - Quantity"],
    "Testpoint Description": ["ink painting", "two pandas"],
}


def written(path: Path, column: str, points: object) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["index", f"prompt_{column}", f"sub_dims_{column}"])
        rows.writerow([0, 'two "pandas", in ink', json.dumps(points, ensure_ascii=False)])
    return path


def test_geneval_2_brings_questions_answers_and_skills(tmp_path: Path) -> None:
    file = tmp_path / "geneval2_data.jsonl"
    file.write_text(json.dumps(GENEVAL) + "\n")
    (prompt,) = read_prompts(file, "image").rows
    assert prompt.text == GENEVAL["prompt"]
    assert prompt.facts["questions"] == [
        {"question": "How many bicycles are in the image?", "answer": "four", "kind": "count"},
        {"question": "Are the bicycles white?", "answer": "Yes", "kind": "attribute"},
    ]


def test_unigenbench_brings_its_test_points_in_either_language(tmp_path: Path) -> None:
    (prompt,) = read_prompts(written(tmp_path / "en.csv", "en", POINTS), "image").rows
    assert prompt.text == 'two "pandas", in ink'
    asked = prompt.facts["questions"]
    assert [(one["kind"], one["answer"]) for one in asked] == [("Style", "yes"), ("Attribute", "yes")]
    assert prompt.text in asked[1]["question"]
    assert asked[1]["question"].endswith("(Attribute - Quantity): two pandas?")
    chinese = {"考点": ["属性-数量"], "考点对应描述": ["两只熊猫"]}
    (prompt,) = read_prompts(written(tmp_path / "zh.csv", "zh", chinese), "image").rows
    assert prompt.facts["questions"][0]["kind"] == "属性"


def test_a_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.jsonl"
    file.write_text(json.dumps({**GENEVAL, "skills": ["count"]}) + "\n")
    with pytest.raises(UsageError, match=r"line 1 of .*cut.jsonl is not a row of GenEval 2 .*take the authors' file"):
        read_prompts(file, "image")
    lacking = {key: value for key, value in POINTS.items() if key != "Testpoints"}
    with pytest.raises(UsageError, match=r"row 1 of .*en.csv is not a row of UniGenBench"):
        read_prompts(written(tmp_path / "en.csv", "en", lacking), "image")


def test_a_file_of_a_suite_has_its_columns_in_every_row(tmp_path: Path) -> None:
    file, other = tmp_path / "geneval2_data.jsonl", {"prompt": "a cat", "vqa_list": []}
    file.write_text(json.dumps(GENEVAL) + "\n")
    check_suite("geneval2", file)
    for column, points in (("en", POINTS), ("zh", {})):
        check_suite("unigenbench", written(tmp_path / "points.csv", column, points))
    with pytest.raises(UsageError, match=r"row 1 of .*points.csv is not of geneval2, which has a column 'prompt'"):
        check_suite("geneval2", tmp_path / "points.csv")
    file.write_text(json.dumps(GENEVAL) + "\n" + json.dumps(other) + "\n")
    with pytest.raises(
        UsageError, match=r"line 2 of .* is not of geneval2, which has a column 'skills'; take the auth"
    ):
        check_suite("geneval2", file)
