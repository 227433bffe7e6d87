"""Every shipped recipe trains two steps offline, from its own file, with its own rewards and prompts."""

import json
from pathlib import Path

import pytest

from genalign.cli.main import main
from genalign.files.shipped import shipped
from genalign.method import build_method
from genalign.method.search.base import Searching
from genalign.run.recipe import load_recipe
from tests.helpers.tiny_language import save_tiny_language

RECIPES = sorted(path.stem for path in shipped("pipelines").glob("*.yaml"))
SMALL = [
    "train.steps=2",
    "data.prompts_per_step=2",
    "method.group=4",
    "policy.batch_size=4",
    "eval.count=2",
    "eval.batch_size=2",
]


SEARCHES = [name for name in RECIPES if isinstance(build_method(load_recipe(name).method), Searching)]


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in SEARCHES])
def test_a_shipped_recipe_trains_two_steps(name: str, tmp_path: Path) -> None:
    words = [*SMALL]
    if name.startswith("text"):  # its model is on the hub
        save_tiny_language(tmp_path / "model")
        words += [f"policy.model={tmp_path / 'model'}", "policy.max_new_tokens=6"]
    else:
        words += ["eval.guidance=[1.0]", "eval.steps=4"]
    assert main(["train", name, *words, "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all("reward" in row for row in rows)
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["prompts"] == 2


@pytest.mark.parametrize("name", SEARCHES)
def test_a_shipped_search_is_measured_and_samples(name: str, tmp_path: Path) -> None:
    """Whatever it searches with: here the shipped flow in few steps, and a reward fitted in two."""
    small = ["policy.model=tiny-flow", "policy.sampler.steps=3", "policy.sampler.sigmas=null", "policy.batch_size=8"]
    if name == "image-nrg":
        fit = ["method.fit.prompts=2", "method.fit.per_prompt=2", "method.fit.steps=2"]
        assert main(["fit-reward", name, *small, *fit, "--out", str(tmp_path / "noisy")]) == 0
        small += [f"method.noisy={tmp_path / 'noisy'}"]
    else:
        small += ["method.budget=4", "method.group=1"]
    tiny = [*small, "eval.count=2", "eval.batch_size=2", "eval.steps=3", "eval.guidance=[1.0]"]
    assert main(["train", name, *tiny, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["prompts"] == 2
    assert (tmp_path / "out" / "report.html").is_file()
    (tmp_path / "p.jsonl").write_text(shipped("assets", "emojiworld", "heldout.jsonl").read_text().splitlines()[0])
    words = ["--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "s")]
    assert main(["sample", name, *words, *small]) == 0
    (row,) = map(json.loads, (tmp_path / "s" / "samples.jsonl").read_text().splitlines())
    assert row["search"] == load_recipe(name).method.name
    assert (tmp_path / "s" / row["file"]).is_file()
