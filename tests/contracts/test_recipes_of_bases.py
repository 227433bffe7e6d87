"""Recipes of published picture models: each trains two steps and goes on, with a tiny random pipeline of its class."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from genalign.cli.main import main
from genalign.files.settings import apply_override
from genalign.files.shipped import shipped
from genalign.method import build_method
from genalign.method.search.base import Searching
from genalign.policy.bases import bases
from genalign.policy.settings import PolicySettings
from genalign.reward import build_reward
from genalign.run.memory import GB, Memory, sizes_of_rewards
from genalign.run.recipe import load_recipe
from tests.helpers.hub_models import PICTURES, stand_in

ALL = {path.stem: load_recipe(path.stem) for path in sorted(shipped("pipelines").glob("*.yaml"))}
NAMES = [name for name in ALL if ALL[name].policy.model in PICTURES]
SEARCHES = [name for name in NAMES if isinstance(build_method(ALL[name].method), Searching)]
TRAINED = [name for name in NAMES if name not in SEARCHES]
SMALL = ["train.steps=2", "data.prompts_per_step=2", "policy.batch_size=4", "train.checkpoint_every=1"]
EVALUATED = ["eval.count=2", "eval.batch_size=2", "eval.steps=2", "eval.guidance=[1.0]"]
TRADED = {"sum": ["sharpness", "picture_rules.py:light"]}  # in the place of downloads
SET = {"use": "set", "model": "tiny-clip", "measure": "vendi", "order": 2}


def pick_a_pic(folder: Path) -> Path:
    """A preference set in the columns of the public one, with a tie."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = [("a cat", "a", "b", 1.0), ("a dog", "c", "d", 0.0), ("a fox", "a", "d", 0.5)]
    keys = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
    lines = [dict(zip(keys, (text, f"{a}.png", f"{b}.png", p, 1 - p), strict=True)) for text, a, b, p in rows]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"


def offline(name: str, folder: Path) -> list[str]:
    """What stands in the place of downloads; everything else is the recipe's own."""
    recipe = load_recipe(name)
    words = [*stand_in(recipe.policy, folder / "model"), "policy.sampler.steps=3", "policy.sampler.window_start=null"]
    if recipe.reward is None:
        words.append(f"data.prompts={pick_a_pic(folder)}")
        words.append("eval.rewards=[image-crisp.yaml]")
    elif recipe.method.name == "dragon":
        words.append(f"reward={json.dumps(SET)}")
    elif recipe.method.name == "parrot":
        words.append(f"reward={json.dumps(TRADED)}")
        words.append('method.tags={sharpness: "<1>", light: "<2>", total: ""}')
    else:
        words.append("reward=image-crisp.yaml")
    if "group" in recipe.method.model_fields_set:
        words.append("method.group=2")
    return words if recipe.policy.sampler.window is None else [*words, "policy.sampler.window=2"]


LONG = ("sd35-medium-parrot", "sd35-medium-dragon")  # whose base another recipe has, and whose method a tiny one


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in TRAINED]
)
def test_a_recipe_of_a_base_trains_and_goes_on(name: str, tmp_path: Path) -> None:
    """1 + 1 steps are 2, bit for bit, under the lever that the recipe's head names for small cards; and a report."""
    words = [*SMALL, *offline(name, tmp_path), "policy.offload=phases"]
    assert main(["train", name, *words, "eval=null", "--out", str(tmp_path / "whole")]) == 0
    assert main(["train", name, *words, "eval=null", "train.steps=1", "--out", str(tmp_path / "parts")]) == 0
    assert main(["train", name, *words, *EVALUATED, "--resume", str(tmp_path / "parts")]) == 0
    runs = [tmp_path / run for run in ("whole", "parts")]
    adapters = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]
    assert json.loads((tmp_path / "parts" / "eval.json").read_text())["prompts"] == 2


def test_votes_are_trained_on_without_a_reward(tmp_path: Path) -> None:
    """The three commands of the recipe's head."""
    name, words = "flux2-klein-d3po", offline("flux2-klein-d3po", tmp_path)
    (tmp_path / "mine.txt").write_text("a cat\na dog\n")
    drawn = tmp_path / "drawn"
    sampled = ["--prompts", str(tmp_path / "mine.txt"), "--n", "2", "--rollout", "--out", str(drawn)]
    assert main(["sample", name, *sampled, *words]) == 0
    rows = [json.loads(line) for line in (drawn / "samples.jsonl").read_text().splitlines()]
    pairs = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["prompt"] == second["prompt"]
        kept = {key: first[key] for key in ("prompt", "model", "sampler")}
        pairs.append({**kept, "chosen_seed": second["seed"], "rejected_seed": first["seed"]})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    votes = [f"{key}={tmp_path / 'pairs.jsonl'}" for key in ("method.pairs", "data.prompts")]
    given = [word for word in words if not word.startswith("reward=")]
    run = ["train", name, *SMALL[:2], *given, "reward=null", *votes, "eval=null", "--out", str(tmp_path / "run")]
    assert main(run) == 0
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert logs[0]["loss"] == pytest.approx(np.log(2), rel=1e-5)  # before the first update both are as likely


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_with_a_base_samples(name: str, tmp_path: Path) -> None:
    words = [*offline(name, tmp_path), "method.budget=7", "policy.sampler.steps=1", "policy.offload=phases"]
    assert main(["sample", name, "a cat", *words, "--out", str(tmp_path / "s")]) == 0
    (row,) = map(json.loads, (tmp_path / "s" / "samples.jsonl").read_text().splitlines())
    assert row["search"] == load_recipe(name).method.name
    assert (tmp_path / "s" / row["file"]).is_file()


# ---- what their heads say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_head_states_licence_downloads_and_three_cards(name: str) -> None:
    recipe = load_recipe(name)
    head = " ".join(line.lstrip("# ") for line in head_of(name).splitlines())
    base = bases()[recipe.policy.model]
    assert base.licence.partition(" (")[0] in head
    assert f"{base.download / 1e9:.1f} GB" in head
    rewards = sum(sizes_of_rewards(recipe).values())
    if recipe.reward is not None:
        assert f"{rewards:.1f} GB of the reward" in head
    assert [card for card, _ in cards_of(name)] == ["24", "48", "80"]
    assert f"genalign train {name}" in head
    assert "Not run on the real weights yet" in head


@pytest.mark.parametrize(
    "name", [name if name == "sd35-medium-flow-grpo" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_the_presets_of_a_recipe_are_what_the_plan_predicts(name: str) -> None:
    memory = Memory(load_recipe(name))
    for card, line in cards_of(name):
        for words, stated in re.findall(r"([^();]*)\(([\d.]+)\)", line):
            plain: dict[str, Any] = {"policy": memory.settings.model_dump()}
            for override in re.findall(r"policy\.\S+=\S+", words):
                apply_override(plain, override)
            peak = memory.peak(PolicySettings.model_validate(plain["policy"])) / GB
            assert peak == pytest.approx(float(stated), abs=0.06)
            assert peak <= 0.94 * int(card)


def head_of(name: str) -> str:
    return shipped("pipelines", f"{name}.yaml").read_text().split("policy:\n")[0]


def cards_of(name: str) -> list[tuple[str, str]]:
    return re.findall(r"^#   (\d+)GB  (.*)$", head_of(name), re.MULTILINE)


@pytest.mark.parametrize("name", ["image-parrot-three", "image-variety"])
def test_their_reward_files_are_built_before_anything_is_downloaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert build_reward(f"{name}.yaml", tmp_path).aspects
