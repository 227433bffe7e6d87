"""A resolved recipe means the same from any folder, and moves between machines: shipped by name, local by full path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from genalign.files.places import stable_name
from genalign.files.settings import changed_key
from genalign.files.shipped import shipped
from genalign.run.recipe import MAY_CHANGE, load_recipe, may_change

ROOM = shipped("assets").resolve()


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [text for part in parts for text in strings(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("path", sorted(shipped("pipelines").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_resolves_without_a_path_of_this_machine(path: Path) -> None:
    resolved = load_recipe(path).resolved()
    assert not [text for text in strings(resolved) if Path(text).is_absolute()]
    assert resolved["policy"]["model"] == yaml.safe_load(path.read_text())["policy"]["model"]


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("image-d3po", "policy.model"),
        ("image-parrot", "policy.writer"),
        ("image-nrg", "method.noisy"),
        ("image-d3po", "data.prompts"),
        ("image-d3po", "eval.prompts"),
        ("image-d3po", "reward"),
    ],
)
def test_a_shipped_thing_goes_by_its_name_however_it_was_reached(recipe: str, key: str) -> None:
    named = load_recipe(recipe).resolved()
    section, _, last = key.rpartition(".")
    name = named[section][last] if section else named[last]
    full = shipped("rewards" if key == "reward" else "assets", name).resolve()
    assert full.exists()
    by_path = load_recipe(recipe, [f"{key}={full}"]).resolved()
    assert by_path == named


def test_what_is_local_has_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the recipe, in folders without a slash in their names; one of them shadows a shipped model."""
    for name in ("tiny-flow", "writer", "noisy", "tuned"):
        (tmp_path / name).mkdir()
    (tmp_path / "seen.txt").write_text("one\n")
    words = [
        "policy.writer=writer",
        "data.prompts=seen.txt",
        "train.monitor={prompts: seen.txt, held_out: [sharpness]}",
    ]
    plain = yaml.safe_load(shipped("pipelines", "image-nrg.yaml").read_text())
    plain["method"]["noisy"] = "noisy"
    plain["reward"] = {"use": "clip", "model": "./tuned"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plain))
    monkeypatch.chdir(shipped("pipelines"))
    resolved = load_recipe(tmp_path / "mine.yaml", words).resolved()
    assert resolved["policy"]["model"] == str((tmp_path / "tiny-flow").resolve())
    assert resolved["policy"]["writer"] == str((tmp_path / "writer").resolve())
    assert resolved["method"]["noisy"] == str((tmp_path / "noisy").resolve())
    assert (
        resolved["data"]["prompts"] == resolved["train"]["monitor"]["prompts"] == str((tmp_path / "seen.txt").resolve())
    )
    assert resolved["reward"]["model"] == str((tmp_path / "tuned").resolve())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(resolved))
    assert load_recipe(tmp_path / "run" / "recipe.yaml").resolved() == resolved


def test_stored_trajectories_are_found_from_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    method = {"name": "d3po", "pairs": "pairs.jsonl", "trajectories": "kept"}
    plain = {"policy": {"model": "tiny-flow"}, "data": {"prompts": "pairs.jsonl"}, "method": method}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(plain))
    resolved = load_recipe(tmp_path / "mine.yaml").resolved()
    assert resolved["method"]["trajectories"] == str((tmp_path / "kept").resolve())


def test_a_hub_id_and_what_is_nowhere_stay(tmp_path: Path) -> None:
    assert stable_name("somebody/model", tmp_path, "assets") == "somebody/model"
    assert stable_name("/gone/assets/tiny-flow", tmp_path, "assets") == "/gone/assets/tiny-flow"
    assert stable_name(str(ROOM / "tiny-flow"), tmp_path, "assets") == "tiny-flow"
    assert stable_name(str(ROOM / "tiny-flow"), tmp_path) == str(ROOM / "tiny-flow")  # not looked for among the shipped


def test_a_run_by_name_and_one_by_path_are_one_recipe() -> None:
    named, by_path = (load_recipe("image-d3po", words) for words in ([], [f"policy.model={ROOM / 'tiny-flow'}"]))
    assert changed_key(named.resolved(), by_path.resolved(), MAY_CHANGE) is None


def test_the_number_of_steps_may_change_on_resuming_unless_the_rate_falls_by_it() -> None:
    assert "train.steps" in may_change(load_recipe("image-nft"))
    falling = load_recipe("image-nft", ["train.schedule=cosine"])
    longer = load_recipe("image-nft", ["train.schedule=cosine", "train.steps=65"])
    changed = changed_key(falling.resolved(), longer.resolved(), may_change(longer))
    assert changed == "train.steps (was 64, is 65)"
