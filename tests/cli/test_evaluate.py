"""`genalign eval --suite`: a run on other prompts, judged by their questions; and what is refused before any of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genalign.cli.main import main
from tests.helpers.tiny_recipe import write_recipe
from tests.helpers.toy_judges import tiny_vlm

QUESTIONS = [["How many cat ?", "two"], ["is it good ?", "Yes"]]
ROWS = [
    {"prompt": text, "vqa_list": QUESTIONS, "skills": ["count", "object"]} for text in ("a cat", "two star", "a dog")
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step without an evaluation of its own, and beside it a suite and a judge."""
    folder = tmp_path_factory.mktemp("suites")
    recipe = write_recipe(folder, eval=None, train={"steps": 1})
    assert main(["train", str(recipe), "--out", str(folder / "run")]) == 0
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    judge = {"use": "judge-questions", "model": str(tiny_vlm(folder / "vlm")), "kinds": ["count"], "name": "asked"}
    (folder / "judge.yaml").write_text(json.dumps(judge))
    return folder / "run"


def test_suites_are_measured_beside_each_other(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (run.parent / "plain.txt").write_text("a cat\ntwo star\n")
    suites = ["--suite", "geneval2=prompts.jsonl", "--judge", "judge.yaml", "--reward", "sharpness", "--json"]
    assert main(["eval", str(run), *suites]) == 0
    rows = {row["metric"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {row["suite"] for row in rows.values()} == {"geneval2"}
    assert {"asked", "asked/count", "sharpness"} <= set(rows)
    assert rows["asked"]["held_out"]
    assert not rows["sharpness"]["held_out"]
    assert not (run / "eval.json").exists()  # the recipe's own evaluation is another
    kept = json.loads((run / "suites" / "geneval2" / "eval.json").read_text())
    assert kept["prompts"] == 3
    assert kept["metrics"]["asked"]["before"] == rows["asked"]["before"]
    assert "<h3>geneval2</h3>" in (run / "report.html").read_text()
    assert main(["eval", str(run), "--suite", "plain.txt", "--judge", "sharpness"]) == 0
    assert "plain: 2 prompts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--suite", "geneval2"], "do not come with genalign (CC BY-NC 4.0); fetch geneval2_data.jsonl of github.com"),
        (["--suite", "geneval2="], "fetch geneval2_data.jsonl of github.com"),
        (["--suite", ""], "--suite is given no file"),
        (["--suite", "unigenbench=data/test_prompts_en.csv"], "there is no prompts file 'data/test_prompts_en.csv'"),
        (["--suite", "geneval=prompts.jsonl"], "there is no suite 'geneval'; did you mean 'geneval2'"),
        (["--suite", "prompts.jsonl"], "name a reward by --judge R"),
        (
            ["--suite", "geneval2=plain.txt", "--judge", "sharpness"],
            "plain.txt is a plain list, not the prompts of gene",
        ),
        (
            ["--suite", "geneval2=other.jsonl", "--judge", "sharpness"],
            "other.jsonl is not of geneval2, which has a col",
        ),
        (["--suite", "unigenbench=prompts.jsonl", "--judge", "sharpness"], "which has a column 'prompt_en'; take the"),
        (["--suite", "nowhere.jsonl", "--judge", "sharpness"], "there is no prompts file 'nowhere.jsonl'"),
        (["--suite", "plain.txt", "--judge", "image-geneval2"], "facts.questions"),
        (["--judge", "sharpness"], "--judge scores the prompts of --suite"),
    ],
)
def test_what_is_missing_is_one_sentence(
    run: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    (run.parent / "plain.txt").write_text("a cat\n")
    (run.parent / "other.jsonl").write_text(json.dumps({"prompt": "a cat", "facts": {"questions": []}}) + "\n")
    assert main(["eval", str(run), *words]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
