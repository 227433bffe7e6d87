"""Recipes: what parses, what is refused and in which words."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import yaml

from genalign.data.prompts import read_prompts
from genalign.files.shipped import shipped
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import UsageError
from tests.helpers.hub_models import PICTURES, stand_in

RECIPES = sorted(shipped("pipelines").glob("*.yaml"))


def shown(prompt) -> bytes:
    """The pictures that a prompt brings."""
    return b"" if prompt.media is None else prompt.media["image"].data.numpy().tobytes()


def test_every_shipped_recipe_parses_and_names_what_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genalign.run.build.read_prompts", cache(read_prompts))  # many name the same thousands
    assert {path.stem for path in RECIPES} >= {"image-d3po", "image-flow-grpo", "image-ddpo", "text-grpo", "text-dpo"}
    for path in RECIPES:
        recipe = load_recipe(path)
        if recipe.policy.model in PICTURES:
            continue  # what they name must be fetched first; test_recipes_of_bases.py puts other things in its place
        words = stand_in(recipe.policy, tmp_path / path.stem)
        recipe = load_recipe(path, words) if words else recipe
        built = build(recipe)  # reads data and rewards, and checks that all fits; no weights
        assert "policy" not in vars(built)
        assert len(built.data) >= recipe.data.prompts_per_step
        assert built.eval_prompts is not None
        assert len(built.eval_prompts) >= 32
        trained, examined = ({(p.text, shown(p)) for p in prompts} for prompts in (built.data, built.eval_prompts))
        assert not trained & examined, f"{path}: trained on the exam"


def test_every_key_of_a_shipped_recipe_is_commented() -> None:
    for path in RECIPES:
        for line in path.read_text().splitlines():
            key, colon, value = line.partition(":")
            if colon and value.strip() and not key.strip().startswith("#") and not line.startswith("reward:"):
                documented = "#" in line or key.strip() in DOCUMENTED_ONCE
                assert documented, f"{path.name}: {line.strip()} has no comment"


DOCUMENTED_ONCE = {"prompts", "count", "seed", "seeds", "guidance", "steps"}  # say themselves, or are explained above


def test_a_resolved_recipe_is_a_recipe_of_the_same_content(tmp_path: Path) -> None:
    for path in RECIPES:
        resolved = load_recipe(path, ["train.seed=7"]).resolved()
        (tmp_path / path.name).write_text(yaml.safe_dump(resolved))
        again = load_recipe(tmp_path / path.name)
        assert again.resolved() == resolved
        assert again.train.seed == 7


def test_paths_of_overrides_are_seen_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("use: sharpness")
    (tmp_path / "rules.py").write_text("def light(image): return image.mean((1, 2, 3))")
    shutil.copytree(shipped("assets", "tiny-flow"), tmp_path / "models" / "own")
    (tmp_path / "tiny-flow").mkdir()  # a name without a slash stays a name
    monkeypatch.chdir(tmp_path)
    spec = "reward={sum: [{use: 'rules.py:light'}, {use: image-clip.yaml}]}"
    recipe = load_recipe("image-draft", ["reward=mine.yaml", "policy.model=models/own"])
    assert recipe.reward == str(tmp_path / "mine.yaml")
    assert recipe.policy.model == str(tmp_path / "models" / "own")
    assert build(recipe).reward.name == "sharpness"
    recipe = load_recipe("image-draft", [spec, "policy.model=tiny-flow"])
    assert recipe.reward["sum"] == [{"use": f"{tmp_path / 'rules.py'}:light"}, {"use": "image-clip.yaml"}]
    assert recipe.policy.model == "tiny-flow"
    recipe = load_recipe("image-draft", ["reward={sum: [{use: ./models}, {use: clip, model: models/own}]}"])
    assert recipe.reward["sum"][0] == {"use": str(tmp_path / "models")}
    assert recipe.reward["sum"][1]["model"] == str(tmp_path / "models" / "own")
    for name in ("pairs.csv", "pair.json", "rows.parquet", "models/clip.mp4"):
        (tmp_path / name).touch()
        assert load_recipe("image-flow-dpo", [f"data.prompts={name}"]).data.prompts == str(tmp_path / name)
    long = "yes/no " * 100
    assert load_recipe("image-draft", [f"reward={long}"]).reward == long.strip()
    with pytest.raises(UsageError, match=r"no model folder 'models'.*is written ./models"):
        build(load_recipe("image-draft", ["policy.model=models"]))


def test_overrides_are_yaml_and_reach_everything() -> None:
    recipe = load_recipe(
        "image-flow-grpo",
        [
            "train.learning_rate=1e-4",
            "policy.sampler.window=null",
            "method.clip_nats=[0.5, 2]",
            "policy.call.height=64",
            "reward={use: sharpness}",
            "eval=null",
        ],
    )
    assert recipe.train.learning_rate == 1e-4
    assert recipe.policy.sampler.window is None
    assert recipe.method.clip_nats == (0.5, 2.0)
    assert recipe.policy.call["height"] == 64
    assert recipe.reward == {"use": "sharpness"}
    assert recipe.eval is None


def test_scientific_notation_is_a_number_even_where_no_type_says_so() -> None:
    assert load_recipe("image-d3po", ["policy.call.x=1e-4"]).policy.call["x"] == 1e-4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stepz=3", r"no key 'train.stepz'; did you mean 'steps'\?"),
        ("policy.lora.rnk=3", r"no key 'policy.lora.rnk'; did you mean 'rank'\?"),
        ("eval.heldout=x", r"no key 'eval.heldout'; did you mean 'held_out'\?"),
        ("polices={}", r"no key 'polices'; did you mean 'policy'\?"),
        ("train.steps=few", r"train.steps: input should be a valid integer.*'few'"),
        ("train.steps", r"'train.steps' is not an override; write key.subkey=value"),
        ("train.steps=[1", r"not YAML"),
        ("reward.x=1", r"reaches into reward, which has no keys"),
        ("method.name=grop", r"no method 'grop'; did you mean 'grpo'\?"),
        ("data=null", r"data: input should be"),
    ],
)
def test_what_is_wrong_is_named(override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        load_recipe("image-flow-grpo", [override])
    assert "\n" not in str(refused.value)


def test_a_missing_key_and_an_unknown_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("policy: {model: tiny-flow}\ndata: {prompts: a.txt}\n")
    with pytest.raises(UsageError, match="the key 'method' is missing"):
        load_recipe(tmp_path / "r.yaml")
    with pytest.raises(UsageError, match="'image-d3p'; did you mean 'image-d3po'"):
        load_recipe("image-d3p")
    (tmp_path / "r.yaml").write_text("policy: [\n")
    with pytest.raises(UsageError, match=r"is not YAML.*line 2"):
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("just words\n")
    with pytest.raises(UsageError, match="holds no recipe; its top-level keys are policy, data"):
        load_recipe(tmp_path / "r.yaml")
