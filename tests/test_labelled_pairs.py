"""Labels given by a person, through the command line: sample as training does, label, and train on the labels."""

import json
import math

import pytest

from genalign.cli.main import main
from tests.tiny_recipe import write_recipe

ASPECTS = ("loss", "rewards/margins", "grad_norm")


@pytest.fixture
def labelled(tmp_path):
    """A recipe, the folder of its base's rollouts, and pairs.jsonl that prefers the second sample of each prompt."""
    d3po = {"name": "d3po", "group": 2, "beta": 1.0}
    recipe = write_recipe(tmp_path, method=d3po, train={"steps": 4, "learning_rate": 0.01}, eval=None)
    drawn = tmp_path / "drawn"
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--n", "2", "--rollout", "--seed", "5", "--out", str(drawn)]
    assert main(["sample", str(recipe), *words]) == 0
    rows = [json.loads(line) for line in (drawn / "samples.jsonl").read_text().splitlines()]
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for loser, winner in zip(rows[::2], rows[1::2], strict=True):
            seeds = {"chosen_seed": winner["seed"], "rejected_seed": loser["seed"]}
            kept = {key: winner[key] for key in ("prompt", "model", "sampler")}
            file.write(json.dumps({**kept, **seeds}) + "\n")
    return recipe, tmp_path


def train(recipe, out, *overrides):
    words = ["data.prompts=pairs.jsonl", "method.pairs=pairs.jsonl", "reward=null", *overrides]
    assert main(["train", str(recipe), *words, "--out", str(out)]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_pairs_train_alike_from_seeds_and_from_stored_trajectories(labelled):
    recipe, folder = labelled
    again = train(recipe, folder / "again")
    stored = train(recipe, folder / "stored", "method.trajectories=drawn/trajectories")
    assert again[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert again[-1]["rewards/margins"] > 0  # eight prompts, two a step: the labels of steps 1 to 4 are all different
    for one, other in zip(again, stored, strict=True):
        assert {name: one[name] for name in ASPECTS} == pytest.approx({name: other[name] for name in ASPECTS}, abs=1e-6)
    assert sum(row["calls"] for row in stored) < sum(row["calls"] for row in again)  # nothing was sampled


def test_resumed_labelled_run_goes_on(labelled):
    recipe, folder = labelled
    whole = train(recipe, folder / "whole", "train.checkpoint_every=2")
    train(recipe, folder / "half", "train.checkpoint_every=2", "train.steps=2")
    words = ["data.prompts=pairs.jsonl", "method.pairs=pairs.jsonl", "reward=null", "train.checkpoint_every=2"]
    assert main(["train", str(recipe), *words, "--resume", str(folder / "half")]) == 0
    rows = [json.loads(line) for line in (folder / "half" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole]


def test_pairs_of_another_sampler_are_refused(labelled, capsys):
    recipe, folder = labelled
    words = ["data.prompts=pairs.jsonl", "method.pairs=pairs.jsonl", "reward=null", "policy.sampler.steps=4"]
    assert main(["train", str(recipe), *words, "--out", str(folder / "other")]) == 2
    assert "policy.sampler" in capsys.readouterr().err


def test_a_missing_trajectory_is_named(labelled, capsys):
    recipe, folder = labelled
    for path in sorted((folder / "drawn" / "trajectories").glob("*.safetensors"))[1:]:
        path.unlink()
    words = ["data.prompts=pairs.jsonl", "method.pairs=pairs.jsonl", "reward=null"]
    words.append("method.trajectories=drawn/trajectories")
    assert main(["train", str(recipe), *words, "--out", str(folder / "short")]) == 2
    assert "has no trajectory of seed" in capsys.readouterr().err
