"""Pairs labelled by a person: read, drawn again and trained on, in Python and through the command line."""

from __future__ import annotations

import json
import math

import pytest
import torch

from genalign.cli.main import main
from genalign.method import MethodSettings, build_method
from genalign.types import Prompt, UsageError
from tests.helpers.learners import PROMPTS
from tests.helpers.tiny_recipe import write_recipe
from tests.helpers.toy_policy import ToyPolicy, ToyReward


def write_pairs(path, policy: ToyPolicy, **change) -> None:
    rows = []
    for prompt in PROMPTS:
        seeds = list(range(100 + 10 * prompt.uid, 104 + 10 * prompt.uid))
        made = policy.rollout([prompt], 4, seeds)
        total = ToyReward()(made.prompts, made.media).total
        best, worst = seeds[int(total.argmax())], seeds[int(total.argmin())]
        row = {"prompt": prompt.text, "chosen_seed": best, "rejected_seed": worst, **policy.digest(), **change}
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")


def test_labelled_pairs_are_drawn_again_and_teach(tmp_path):
    policy, file = ToyPolicy(), tmp_path / "pairs.jsonl"
    write_pairs(file, policy)
    learner = build_method(MethodSettings(name="d3po", pairs="pairs.jsonl"), tmp_path)
    assert learner.needs == {"rollout", "pairs", "reference"}
    original = learner.collect(policy, PROMPTS, None, 0, 0).trajectory
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=0.05)
    for step in range(20):
        experience = learner.collect(policy, PROMPTS, None, 0, step)
        for loss in learner.losses(policy, experience):
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(experience.trajectory.tape, original.tape)  # the tuned policy does not change what was labelled
    assert policy.adapters_on
    before, after = (
        ToyReward()(PROMPTS * 16, policy.generate(PROMPTS * 16, range(64))).total.mean()
        for policy in (ToyPolicy(), policy)
    )
    assert after > before + 0.05


@pytest.mark.parametrize("key", ["model", "sampler"])
def test_pairs_of_another_model_or_sampler_are_refused(tmp_path, key):
    write_pairs(tmp_path / "pairs.jsonl", ToyPolicy(), **{key: "something else"})
    learner = build_method(MethodSettings(name="d3po", pairs="pairs.jsonl"), tmp_path)
    with pytest.raises(UsageError, match=rf"drawn with {key} something el.* set policy\.{key}"):
        learner.collect(ToyPolicy(), PROMPTS, None, 0, 0)


def test_pairs_of_other_prompts_are_refused(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", ToyPolicy())
    learner = build_method(MethodSettings(name="d3po", pairs="pairs.jsonl"), tmp_path)
    with pytest.raises(UsageError, match=r"no prompt of step 0 has a labelled pair .* data\.prompts"):
        learner.collect(ToyPolicy(), [Prompt("nobody labelled this")], None, 0, 0)


GOOD = '{"prompt": "a", "chosen_seed": 1, "rejected_seed": 2, "model": "m", "sampler": "s"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the labelled pairs"),
        ("\n", "holds no labelled pairs"),
        (GOOD + "\n{not json", "line 2 of .* is not JSON"),
        ("[1]", "line 1 of .* is not a JSON object"),
        (GOOD.replace("1", '"1"'), "line 1 of .* has no int under 'chosen_seed'"),
        (GOOD.replace("1", "true"), "line 1 of .* has no int under 'chosen_seed'"),
        (GOOD.replace("2", "1"), "prefers seed 1 to itself"),
    ],
)
def test_a_bad_pairs_file_is_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(UsageError, match=message):
        build_method(MethodSettings(name="dpo", pairs="pairs.jsonl"), tmp_path)


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
