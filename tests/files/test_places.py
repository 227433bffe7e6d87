"""Where names and paths of a recipe lead."""

import shutil
from pathlib import Path

import pytest

from genalign.files.places import find, model_path
from genalign.files.shipped import shipped
from genalign.run.recipe import load_recipe
from genalign.types import UsageError


def test_a_copied_recipe_still_finds_what_is_shipped_and_prefers_what_is_beside_it(tmp_path: Path) -> None:
    shutil.copy(shipped("pipelines", "image-d3po.yaml"), tmp_path / "mine.yaml")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert recipe.name == "mine"
    assert recipe.resolved()["reward"] == "image-hybrid.yaml"  # shipped names stay portable
    assert find("emojiworld", recipe.folder, "assets") == shipped("assets", "emojiworld").resolve()
    shutil.copy(shipped("rewards", "image-hybrid.yaml"), tmp_path)
    (tmp_path / "emojiworld").mkdir()
    (tmp_path / "emojiworld" / "train-hard.jsonl").write_text('{"prompt": "one"}\n')
    resolved = load_recipe(tmp_path / "mine.yaml").resolved()
    assert resolved["reward"] == str((tmp_path / "image-hybrid.yaml").resolve())
    assert resolved["data"]["prompts"] == str((tmp_path / "emojiworld" / "train-hard.jsonl").resolve())
    assert resolved["eval"]["prompts"] == "emojiworld/heldout.jsonl"


def test_a_model_is_a_folder_a_shipped_name_or_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    assert model_path("net", tmp_path) == (tmp_path / "net").resolve()
    assert model_path("somebody/some-model", tmp_path) == "somebody/some-model"
    with pytest.raises(UsageError, match="no model folder 'nett'"):
        model_path("nett", tmp_path)
