"""Every shipped recipe trains two steps offline, from its own file, with its own rewards and prompts."""

import json
from pathlib import Path

import pytest

from genalign.cli import main
from genalign.shipped import shipped
from tests.tiny_language import save_tiny_language

RECIPES = sorted(path.stem for path in shipped("pipelines").glob("*.yaml"))
SMALL = [
    "train.steps=2",
    "data.prompts_per_step=2",
    "method.group=4",
    "policy.batch_size=4",
    "eval.count=2",
    "eval.batch_size=2",
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_trains_two_steps(name: str, tmp_path: Path) -> None:
    words = [*SMALL]
    if name.startswith("text"):  # its model is on the hub
        save_tiny_language(tmp_path / "model")
        words += [f"policy.model={tmp_path / 'model'}", "policy.max_new_tokens=6"]
    else:
        words += ["eval.guidance=[1.0]"]
    assert main(["train", name, *words, "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all("reward" in row for row in rows)
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["prompts"] == 2
