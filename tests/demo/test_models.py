"""What the page draws from: names are looked up, never opened as paths."""

import json

import pytest
import yaml

from genalign import load_recipe
from genalign.demo.models import BASE, Models
from genalign.types import UsageError
from tests.demo.conftest import RUN


def test_the_base_and_runs_with_an_adapter_are_offered(models):
    (models.runs / "unfinished").mkdir()
    (models.runs / "unfinished/recipe.yaml").write_text((models.runs / RUN / "recipe.yaml").read_text())
    assert models.names() == [BASE, RUN]


def test_a_run_of_another_model_is_not_offered(models, tmp_path):
    (tmp_path / "other/adapter").mkdir(parents=True)
    text = (models.runs / RUN / "recipe.yaml").read_text()
    (tmp_path / "other/recipe.yaml").write_text(text.replace("model: tiny-flow", "model: tiny-sd"))
    assert Models("image-d3po", [], tmp_path).names() == [BASE]


@pytest.mark.parametrize("name", ["../votes", "/etc", f"../runs/{RUN}", "..", "", f"{RUN}/adapter"])
def test_a_name_from_the_page_is_no_path(models, name):
    with pytest.raises(UsageError, match="there is no run"), models.drawing(name):
        pass


def test_a_prompt_of_the_files_has_its_facts_and_another_has_none(models):
    known = models.offered[0]
    assert models.prompt(f" {known} ").facts["objects"]
    assert not models.prompt("a sentence of one's own").facts
    with pytest.raises(UsageError, match="there is no prompt"):
        models.prompt("  ")


def test_a_round_begins_with_the_adapters_of_all_before_it(models, tmp_path):
    for name, merged in (("first", "null"), ("second", "[/runs/first/adapter]")):
        (tmp_path / name / "adapter").mkdir(parents=True)
        text = (models.runs / RUN / "recipe.yaml").read_text()
        (tmp_path / name / "recipe.yaml").write_text(text.replace("merged: null", f"merged: {merged}"))
    found = Models("image-d3po", [], tmp_path)
    own = [str(tmp_path.resolve() / name / "adapter") for name in ("first", "second")]
    for name, wanted in (("first", own[:1]), ("second", ["/runs/first/adapter", own[1]]), (BASE, [])):
        recipe = load_recipe("image-d3po", found.merging(name))
        assert recipe.policy.adapters_merged == wanted


def test_a_run_is_opened_with_its_own_recipe_as_the_base(models, tmp_path):
    found = Models(str(models.runs / RUN), [], tmp_path / "others")
    assert found.names() == [BASE, RUN]
    assert found.folder(RUN) == models.runs / RUN
    assert found.recipe.policy == models.recipe.policy
    with pytest.raises(UsageError, match=r"is a run; drop it"):
        Models(str(models.runs / RUN), ["train.steps=2"], tmp_path)


def test_a_run_on_votes_is_opened_too(models, tmp_path):
    """Its recipe has no reward: what is shown is scored by its judge alone."""
    text = (models.runs / RUN / "recipe.yaml").read_text()
    recipe = yaml.safe_load(text)
    pair = {"prompt": "one star", "chosen_seed": 1, "rejected_seed": 2, "model": "m", "sampler": "s"}
    (tmp_path / "run/adapter").mkdir(parents=True)
    (tmp_path / "run/pairs.jsonl").write_text(json.dumps(pair) + "\n")
    recipe["reward"], recipe["method"]["pairs"] = None, str(tmp_path / "run/pairs.jsonl")
    recipe["data"] |= {"prompts": str(tmp_path / "run/pairs.jsonl"), "prompts_per_step": 1}
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = Models(str(tmp_path / "run"), [], tmp_path / "others")
    assert [(reward.name, held_out) for reward, held_out in found.rewards] == [("judge", True)]
    assert [prompt.text for prompt in found.plain] == ["one star"]
