"""The tab Inspect: the report of a run inside the page, and changes to its recipe that name nothing of this machine."""

import json

import pytest
from PIL import Image

from genalign.demo.inspect import changed, check, report, run_names
from genalign.types import GenalignError, UsageError
from tests.demo.conftest import RUN


@pytest.fixture
def run(models):
    run = models.runs / RUN
    rows = [{"step": step, "reward": step / 10, "loss": 0.7} for step in range(1, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (1, 2, 3):
        (run / f"samples/step-{step}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (step, 0, 0)).save(run / f"samples/step-{step}/grid.png")
    return run


def test_a_run_is_shown_with_curves_and_a_film_strip(models, run):
    html = report(models, RUN)
    assert html.count('alt="base beside tuned samples at step') == 3
    assert "<svg" in html
    assert "name: d3po" in html
    assert run_names(models)[0] == RUN


def test_the_recipe_names_no_folder_of_this_machine(models, run):
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("prompts: emojiworld/heldout.jsonl", f"prompts: {run}/own.jsonl"))
    html = report(models, RUN)
    (run / "recipe.yaml").write_text(recipe)
    assert "prompts: own.jsonl" in html
    assert str(models.runs) not in html


def test_metrics_with_html_in_their_names_are_text(models, run):
    (run / "metrics.jsonl").write_text('{"step": 1, "rewards/<img src=x onerror=alert(1)>/mean": 1.0}\n' * 2)
    assert "<img src=x" not in report(models, RUN)


def test_a_change_is_checked_as_it_is_typed(models, run):
    assert "d3po on tiny-flow, 7 steps, 2 changes" in check(models, RUN, "train.steps = 7\n\ntrain.learning_rate=1e-4")
    with pytest.raises(GenalignError, match=r"did you mean .steps."):
        check(models, RUN, "train.stepz=7")
    with pytest.raises(GenalignError, match="steps"):
        check(models, RUN, "train.steps=few")


def test_numbers_and_words_are_changes(models, run):
    words, recipe = changed(models, RUN, "train.ema=null\nmethod.loss=ipo\ntrain.learning_rate=2.5e-4")
    assert words[1:] == ["train.ema=null", "method.loss=ipo", "train.learning_rate=2.5e-4"]
    assert (recipe.train.ema, recipe.train.learning_rate) == (None, 2.5e-4)


@pytest.mark.parametrize(
    "line",
    [
        "reward=evil.py:run",
        "policy.model=owner/name",
        "policy.model=../elsewhere",
        "policy.model=/etc",
        "data.prompts=pairs.jsonl",
        "reward={use: x}",
        "--out=elsewhere",
        "train.report_to=[wandb]",
        "reward=http://host",
    ],
)
def test_a_change_that_names_a_place_or_code_is_refused(models, run, line):
    with pytest.raises(UsageError, match="with a number, true, false, null or one word"):
        changed(models, RUN, line)
