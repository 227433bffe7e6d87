"""Every prompt is checked before the first step: one too long is named by its line, not met at some step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genalign.cli.main import main
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.tiny_recipe import write_recipe

LONG = "star " * 70  # the tiny model's context has 64 tokens
RULE = "from genalign.reward import reward\n\n@reward\ndef stars(text):\n    return [float(len(t)) for t in text]\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    save_tiny_language(tmp_path / "words")
    path = write_recipe(
        tmp_path,
        policy={"model": "words", "max_new_tokens": 4},
        data={"prompts": "train.jsonl", "prompts_per_step": 2},
        reward={"use": "text_rule.py:stars"},
        eval={"prompts": "held.txt"},
        method={"name": "grpo", "group": 4},
    )
    (tmp_path / "text_rule.py").write_text(RULE)
    (tmp_path / "held.txt").write_text("hello\nthe cat\n")
    rows(tmp_path, "red", "blue", "green", "two")
    return path


def rows(folder: Path, *prompts: str) -> None:
    lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
    (folder / "train.jsonl").write_text("\n\n".join(lines) + "\n")  # every second line is blank


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["train", *words]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("genalign: "))
    return line


def test_a_training_prompt_without_room_is_named_before_the_first_step(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path, "red", "blue", "green", LONG)
    said = refused(capsys, str(recipe), "--out", str(tmp_path / "run"))
    assert "line 7 of " in said
    assert "train.jsonl: prompt 'star star" in said
    assert "leaves no room for 4 more in the model's 64" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert "line 7 of " in refused(capsys, str(recipe), "--plan")


def test_a_held_out_prompt_is_named_before_the_first_step(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held.txt").write_text(f"hello\nthe cat\n{LONG}\n")
    assert "line 3 of " in (said := refused(capsys, str(recipe), "--out", str(tmp_path / "run")))
    assert "held.txt: prompt" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_given_answer_without_room_is_named(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"prompt": "red", "chosen": "yes", "rejected": answer} for answer in ("no", LONG)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    said = refused(capsys, str(recipe), "reward=null", "method={name: dpo}", "eval=null")
    assert "line 2 of " in said
    assert "leaves no room for 71 more" in said


def test_samples_too_are_checked_before_the_first_is_drawn(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "asked.txt").write_text(f"red\nblue\n{LONG}\n")
    words = ["sample", str(recipe), "--prompts", str(tmp_path / "asked.txt"), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "leaves no room" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.txt"))


@pytest.mark.parametrize("file", ["train", "held"])
def test_a_picture_that_the_model_cannot_take_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    plain: list[dict[str, Any]] = [{"prompt": "red"}, {"prompt": "blue"}]
    for name in ("train", "held"):
        lines = plain + [{"prompt": "green", "image": "a.png"}] * (name == file)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = write_recipe(
        tmp_path, data={"prompts": "train.jsonl", "prompts_per_step": 2}, eval={"prompts": "held.jsonl"}
    )
    said = refused(capsys, str(recipe), "--out", str(tmp_path / "run"))
    assert f"line 3 of {tmp_path / f'{file}.jsonl'}: prompt 2 brings media" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# ---- samples of a step ago ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"reward": {"use": "sharpness"}}, "reward sharpness is computed in this process"),
        ({"reward": {"use": "sharpness"}, "method": {"name": "draft"}}, "method draft has none that a reward scores"),
        ({"method": {"name": "awm"}}, "method awm .*keeps no density of those that it drew a step ago"),
    ],
)
def test_samples_of_a_step_ago_are_refused_where_they_would_be_wrong_or_no_faster(
    sections: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, **sections))
    said = refused(capsys, recipe, "train.staleness=1", "--out", str(tmp_path / "run"))
    assert re.search(words, said)
    assert "set train.staleness=0" in said
    assert not (tmp_path / "run").exists()


def test_a_run_that_samples_a_step_ahead_says_so_in_its_log(tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, eval=None, train={"steps": 3, "staleness": 1}))
    assert main(["train", recipe, "--out", str(tmp_path / "run")]) == 0
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [log["staleness"] for log in logs] == [0, 1, 1]
    assert [log["ratio/mean"] == 1 for log in logs] == [True, False, False]
