"""Where names and paths of a recipe lead."""

import re
import shutil
from pathlib import Path

import pytest

from genalign.files.places import BUILT_BY_USERS, adapter_path, file_path, find, model_path
from genalign.files.shipped import shipped, shipped_models
from genalign.reward.base import resolve_model
from genalign.reward.heads.exemplars import find_exemplars
from genalign.reward.heads.weights import find_weights
from genalign.run.recipe import load_recipe
from genalign.types import UsageError, nearest


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
    for name, part in BUILT_BY_USERS.items():
        assert not shipped("assets", name).exists()  # once it is, it leaves the list
        with pytest.raises(UsageError, match=f"{name} is not shipped yet; make it by `genalign lab build {part}`"):
            model_path(name, tmp_path)
    with pytest.raises(UsageError, match="no model folder 'nett'"):
        model_path("nett", tmp_path)


@pytest.mark.parametrize("name", ["x.gguf", "models/x.gguf", "./x.gguf", "/x.gguf", "models/head.safetensors", "a.pth"])
def test_a_missing_file_of_weights_is_no_folder_and_no_hub_id(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"there is no file {name!r}; check the path")):
        model_path(name, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"there is no adapter {name!r} in")):
        adapter_path(name, tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "no/such/thing"])
def test_what_cannot_be_a_path_is_nowhere(tmp_path: Path, name: str) -> None:
    assert find(name, tmp_path, "assets", "rewards") is None


def test_every_finder_of_rewards_is_this_one(tmp_path: Path) -> None:
    """A model, one file of weights, a reward file and exemplars: in the folder first, then among what is shipped."""
    (tmp_path / "w.safetensors").write_bytes(b"")
    (tmp_path / "rule.py").write_text("")
    beside, shipped_clip = (tmp_path / "w.safetensors").resolve(), shipped("assets", "tiny-clip").resolve()
    assert find_weights("w.safetensors", tmp_path) == str(beside)
    assert find_weights("tiny-clip", tmp_path) == resolve_model("tiny-clip", tmp_path) == str(shipped_clip)
    assert find_weights("somebody/net", tmp_path) == resolve_model("somebody/net") == "somebody/net"
    assert find_exemplars("rule.py:pictures", tmp_path) == f"{(tmp_path / 'rule.py').resolve()}:pictures"
    assert find_exemplars("emojiworld", tmp_path) == str(shipped("assets", "emojiworld").resolve())
    assert file_path("image-clip.yaml", tmp_path) == shipped("rewards", "image-clip.yaml").resolve()
    with pytest.raises(UsageError, match=r"there is no reward file 'image-klip\.yaml' .*; did you mean 'image-clip"):
        file_path("image-klip.yaml", tmp_path)
    with pytest.raises(UsageError, match=r"no model folder 'tiny-clop' .*; did you mean 'tiny-clip'"):
        resolve_model("tiny-clop", tmp_path)


def test_shipped_models_are_the_folders_with_a_mark() -> None:
    marks = {"model_index.json", "config.json", "open_clip_config.json"}
    folders = {path.parent.name for path in shipped("assets").glob("*/*.json") if path.name in marks}
    assert shipped_models() == sorted(folders)
    assert len(folders) > 3


def test_the_nearest_name_ends_a_sentence() -> None:
    assert nearest("shapness", ["clip", "sharpness"]) == "; did you mean 'sharpness'?"
    assert nearest("qqq", ["b", "a", "b"]) == "; known are b, a"  # in their order, each once
    assert nearest("qqq", {"b", "a"}) == "; known are a, b"
    assert nearest("qqq", []) == ""
