"""The tab Inspect: the report of a run inside the page, and changes to its recipe that name nothing of this machine."""

import json
import re

import pytest
from PIL import Image

from genalign.demo.draw import drawing
from genalign.demo.form import changes_of, fields_of
from genalign.demo.inspect import changed, check, extremes, monitored, report, run_names
from genalign.demo.works import CancelledError, Work
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


# ---- the recipe as a form -------------------------------------------------------------------------------------------


def fields(models):
    return {field.key: field for some in fields_of(changed(models, RUN, "")[1]).values() for field in some}


def test_a_form_has_what_a_page_may_change_and_nothing_else(models, run):
    found = fields(models)
    assert (found["train.steps"].value, found["train.steps"].choices) == (str(models.recipe.train.steps), ())
    assert found["train.ema"].value == "0.95"
    assert found["policy.sampler.shared_start"].value is True
    assert found["train.schedule"].choices == ("constant", "linear", "cosine")
    assert found["train.steps"].about.startswith("Rollouts; each ends")
    assert found["method.soft_labels"].value == "null"
    named = (
        "policy.model",
        "data.prompts",
        "reward",
        "method.pairs",
        "eval.held_out",
        "train.report_to",
        "policy.writer",
    )
    assert not set(named) & set(found)  # files, code and addresses


def test_a_form_as_it_stands_changes_nothing(models, run):
    found = list(fields(models).values())
    assert changes_of(found, [field.value for field in found]) == ""


def test_what_was_filled_in_is_the_recipe(models, run):
    found = fields(models)
    given = {"train.steps": "7", "policy.sampler.shared_start": False, "train.ema": "", "method.loss": "ipo"}
    text = changes_of(list(found.values()), [given.get(key, field.value) for key, field in found.items()])
    words, recipe = changed(models, RUN, text)
    assert sorted(words[1:]) == [
        "method.loss=ipo", "policy.sampler.shared_start=false", "train.ema=null", "train.steps=7",
    ]  # fmt: skip
    assert (recipe.train.steps, recipe.train.ema, recipe.method.loss) == (7, None, "ipo")
    assert recipe.policy.sampler.shared_start is False


@pytest.mark.parametrize("value", ["few", "-1", "evil.py:run", "../x", "1 2", "{a: 1}"])
def test_a_field_that_does_not_fit_is_refused_while_it_is_typed(models, run, value):
    found = fields(models)
    text = changes_of([found["train.steps"]], [value])
    with pytest.raises(GenalignError):
        check(models, RUN, text)


# ---- best and worst, and the monitor --------------------------------------------------------------------------------


def test_the_best_and_the_worst_samples_are_those_of_the_judge(models, monkeypatch):
    monkeypatch.setattr("genalign.demo.inspect.LOOKED_AT", 7)
    monkeypatch.setattr("genalign.demo.inspect.SHOWN", 3)
    *growing, last = extremes(models, Work(), RUN)
    assert len(growing) == 7
    shown = [re.findall(r'title="all_facts">.*?<b>(\d\.\d\d)</b>', part) for part in last.split("<h2>Worst")]
    (judge,) = models.built.held_out
    with models.drawing(RUN) as source:
        prompts = [models.prompt(text) for text in models.offered[:7]]
        rows = [source.policy.generate([prompt], [0]) for prompt in prompts]
    values = sorted(float(judge([prompt], media).total[0]) for prompt, media in zip(prompts, rows, strict=True))
    assert [float(value) for value in shown[0]] == pytest.approx(values[:-4:-1], abs=5e-3)
    assert [float(value) for value in shown[1]] == pytest.approx(values[:3], abs=5e-3)


def test_looking_for_them_ends_when_it_is_cancelled(models):
    work = Work()
    pieces = extremes(models, work, RUN)
    next(pieces)
    work.cancel()
    with pytest.raises(CancelledError):
        list(pieces)


def test_a_monitor_is_read_out(run):
    def rows(*found):
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        return monitored(run)

    assert rows({"step": 1, "reward": 0.1}).startswith("Nothing watched")
    looks = [{"step": step, "monitor/clip": 0.1 * step, "monitor/judge": 0.5 - 0.1 * step} for step in (1, 2, 3)]
    assert "looked 3 times" in rows(*looks)
    assert "at step 3 it had risen" in rows(*looks[:2], {**looks[2], "monitor/alarm": 1.0})


def test_html_in_the_name_of_a_run_is_text(models, run):
    import shutil

    hostile = "<img src=x onerror=alert(1)>"
    shutil.copytree(run, models.runs / hostile)
    try:
        shown = [report(models, hostile), list(extremes(models, Work(), hostile))[-1]]
        shown += drawing(models, Work(), hostile, models.offered[0], 0, 1, 0, 0)
    finally:
        shutil.rmtree(models.runs / hostile)
    assert all(hostile not in html for html in shown)
    assert all("&lt;img src=x onerror" in html for html in (shown[0], shown[-1]))
