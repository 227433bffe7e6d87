"""The verbs as functions: keyword arguments in, values out, nothing printed; what was not scored says why."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import genalign
from genalign.cli.main import main
from genalign.cli.sample import open_source
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.preference_files import FORMS
from tests.helpers.tiny_recipe import image_model, write_recipe

RULES = """
from genalign.reward import reward

@reward
def light(image):
    return [float(x.mean()) for x in image]

@reward
def picky(image):
    return [None if float(x.mean()) > 0.5 else float(x.mean()) for x in image]

@reward
def broken(image):
    raise RuntimeError("the lamp is out")

@reward
def half(image):
    return [float("nan") if float(x.mean()) > 0.5 else float(x.mean()) for x in image]
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "rules.py").write_text(RULES)
    paths = []
    for level in (0, 51, 255):
        paths.append(tmp_path / f"{level}.png")
        Image.new("RGB", (16, 16), (level,) * 3).save(paths[-1])
    return paths


def rule(files: list[Path], name: str) -> str:
    return f"{files[0].parent / 'rules.py'}:{name}"


# ---- score ----------------------------------------------------------------------------------------------------------


def test_score_returns_rows(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = genalign.score(rule(files, "light"), files)
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert [row["total"] for row in rows] == pytest.approx([0, 0.2, 1])
    assert [(row["failed"], row["error"], row["truncated"]) for row in rows] == [([], None, [])] * 3
    images = torch.stack([torch.full((3, 4, 4), level) for level in (0.25, 0.75)])
    built = genalign.build_reward(rule(files, "light"), Path())
    rows = genalign.score(built, Media(image=Track(images)), [Prompt("a"), Prompt("b")])
    assert [(row["file"], row["light"]) for row in rows] == [(None, pytest.approx(0.25)), (None, pytest.approx(0.75))]
    assert capsys.readouterr().out == ""


def test_score_refuses_what_does_not_fit(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 prompts for 3 media files"):
        genalign.score(rule(files, "light"), files, ["a", "b"])
    with pytest.raises(UsageError, match="no media files to score"):
        genalign.score(rule(files, "light"), [])
    (tmp_path / "x.txt").write_text("words")
    with pytest.raises(UsageError, match="needs 'image'"):
        genalign.score(rule(files, "light"), [tmp_path / "x.txt"])


def test_why_a_row_has_no_score_is_said(files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(file) for file in files]
    assert main(["score", rule(files, "broken"), "--media", *paths]) == 1
    shown = capsys.readouterr().out
    assert shown.count("the lamp is out") == 3
    assert f"{paths[0]}: broken failed: " in shown
    assert main(["score", rule(files, "broken"), "--media", *paths, "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["failed"] for row in rows] == [["broken"]] * 3
    assert all("the lamp is out" in row["error"] for row in rows)
    assert main(["score", rule(files, "half"), "--media", *paths]) == 0  # two of three
    shown = capsys.readouterr().out
    assert f"{paths[2]}: half failed: " in shown
    assert "not finite" in shown
    assert main(["score", rule(files, "picky"), "--media", *paths]) == 0
    assert f"{paths[2]}: picky abstained" in capsys.readouterr().out
    assert main(["score", rule(files, "picky"), "--media", paths[2]]) == 1


def test_a_cut_text_is_said(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.helpers.toy_rewards import tiny_clip

    (tmp_path / "clip.yaml").write_text(f"{{use: clip, model: {tiny_clip(tmp_path / 'clip')}}}")
    words = ["score", str(tmp_path / "clip.yaml"), "--media", *map(str, files[:2])]
    assert main([*words, "--prompt", "a cat", "a cat " * 200]) == 0
    shown = capsys.readouterr().out
    assert f"{files[1]}: clip read only the beginning of its text" in shown
    assert f"{files[0]}: clip read" not in shown
    assert main([*words, "--prompt", "a cat", "a cat " * 200, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["truncated"] for row in rows] == [[], ["clip"]]


# ---- evaluate_reward ------------------------------------------------------------------------------------------------


def test_evaluate_reward_returns_rows(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = FORMS["HPDv2 test"](tmp_path)
    rows = genalign.evaluate_reward(rule(files, "light"), data)
    (overall,) = (row for row in rows if "aspect" in row)
    assert (overall["aspect"], overall["accuracy"], overall["unscored"]) == ("overall", 1.0, 0)
    assert not [row for row in rows if "error" in row or "failed" in row]
    assert capsys.readouterr().out == ""


def test_why_samples_have_no_score_stands_under_the_table(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = FORMS["HPDv2 test"](tmp_path)  # fair, light, dark: 0.6, 0.9, 0.1
    assert main(["eval-reward", rule(files, "broken"), "--data", str(data)]) == 1
    shown = capsys.readouterr().out
    assert "3 of 3 samples have no score: it abstained from 0 and failed on 3" in shown
    assert "failed on 3: " in shown
    assert "the lamp is out" in shown
    assert main(["eval-reward", rule(files, "broken"), "--data", str(data), "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"unscored": 3, "samples": 3, "abstained": 0, "failed": 3} in rows
    assert main(["eval-reward", rule(files, "picky"), "--data", str(data)]) == 1  # one sample alone makes no pair
    assert "2 of 3 samples have no score: it abstained from 2 and failed on 0" in capsys.readouterr().out
    assert main(["eval-reward", rule(files, "light"), "--data", str(data)]) == 0


# ---- sample and search ----------------------------------------------------------------------------------------------


def test_sample_yields_as_it_draws(capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(str(image_model()))
    drawn = genalign.sample(source, ["a cat", "two stars"], n=2, seed=3, guidance=1.0, steps=2)
    first = next(drawn)
    assert (first.prompt.text, first.seed, first.media.rows, first.search) == ("a cat", 3, 1, None)
    rest = list(drawn)
    assert [(one.prompt.uid, one.seed) for one in rest] == [(0, 4), (1, 3), (1, 4)]
    (again,) = genalign.sample(source, "two stars", seed=4, guidance=1.0, steps=2)
    difference = (again.media["image"].data[0] - rest[-1].media["image"].data[0]).abs().max()
    assert float(difference) < 1e-5
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n": 0}, "n is 0; it must be at least 1"),
        ({"overrides": ["a.b=1"]}, "would change a recipe"),
        ({"trajectories": Path("x"), "steps": 2}, "drop guidance and steps"),
        ({"trajectories": Path("x")}, "a rollout needs a sampler"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_the_call(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        genalign.sample(str(image_model()), "a cat", **keys)
    with pytest.raises(UsageError, match="no prompts"):
        genalign.sample(str(image_model()), [])


def test_search_yields_samples_and_then_its_table(files: list[Path]) -> None:
    run = genalign.search(
        str(image_model()),
        ["a cat"],
        searches=["best-of-n"],
        rewards=[rule(files, "light")],
        budget=4,
        n=2,
        guidance=1.0,
        steps=2,
    )
    drawn = list(run)
    assert [one.search for one in drawn] == ["plain", "plain", "best-of-n", "best-of-n"]
    plain, best = run.table()
    assert (plain["search"], plain["gain"], plain["evaluations"]) == ("plain", None, 1.0)
    scores = [one.score for one in drawn]
    assert best["reward"] == pytest.approx(sum(scores[2:]) / 2)
    assert best["gain"] == pytest.approx(sum(scores[2:]) / 2 - sum(scores[:2]) / 2)
    assert best["gain"] >= 0
    assert "judge" not in best
    assert best["evaluations"] == 4.0
    with pytest.raises(UsageError, match="there is no search"):
        genalign.search(str(image_model()), "a cat")


# ---- evaluate_run, fit_reward ---------------------------------------------------------------------------------------


def test_a_run_is_evaluated_by_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, train={"steps": 1})
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    before = json.loads((tmp_path / "run" / "eval.json").read_text())
    result = genalign.evaluate_run(tmp_path / "run", ["sharpness"])
    assert result["metrics"]["bright"] == before["metrics"]["bright"]
    assert any(name.startswith("sharpness") for name in result["metrics"])
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["metrics"].keys() == result["metrics"].keys()
    assert capsys.readouterr().out == ""


def test_a_reward_is_fitted_by_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.helpers.toy_rewards import tiny_clip

    FORMS["HPDv2 train"](tmp_path)
    recipe = {"data": {"file": "train.json"}, "backbone": {"kind": "clip", "model": str(tiny_clip(tmp_path / "clip"))}}
    (tmp_path / "fit.yaml").write_text(json.dumps({**recipe, "fit": {"steps": 2}}))
    result = genalign.fit_reward(tmp_path / "fit.yaml", ["fit.steps=1"], tmp_path / "out")
    assert result == json.loads((tmp_path / "out" / "fit.json").read_text())
    assert result["learnt_from"] == 1
    assert capsys.readouterr().out == ""


# ---- all of them ----------------------------------------------------------------------------------------------------


PUBLIC = ["evaluate_reward", "evaluate_run", "evaluate_suites", "fit_reward", "sample", "score", "search"]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_take_no_namespace_and_are_documented(name: str) -> None:
    function = getattr(genalign, name)
    assert name in genalign.__all__
    assert "args" not in inspect.signature(function).parameters
    assert "Raises:" in inspect.getdoc(function)
    assert not [
        path.name for path in (Path(genalign.__file__).parent / "cli").glob("*.py")
        if path.name not in ("main.py", "verbs.py") and "Namespace" in path.read_text()
    ]  # fmt: skip


def test_ls_loads_no_torch() -> None:
    code = "import sys; from genalign.cli.main import main; main(['ls', 'models']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
