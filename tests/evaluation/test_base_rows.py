"""Rows of the base as data: the digest moves with all that made them, and they are what a fresh evaluation finds."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genalign.cli.base_rows import apart, build_base_rows
from genalign.evaluation import base_rows
from genalign.evaluation.base_rows import drawing_digest, read_rows, write_rows
from genalign.evaluation.evaluate import evaluate
from genalign.evaluation.settings import EvalSettings
from genalign.evaluation.trial import metrics_of, trial_of
from genalign.files.shipped import shipped
from genalign.policy.settings import PolicySettings
from genalign.run.build import build
from genalign.run.finish import measure
from genalign.run.recipe import load_recipe
from genalign.types import GenalignError
from tests.helpers.level import Level
from tests.helpers.painter import PROMPTS, SCALES, Painter

SMALL = ["eval.count=5", "eval.steps=2", "eval.guidance=[1.0]", "reward=image-rule.yaml", "policy.dtype=float32"]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped rows of our own."""
    monkeypatch.setattr(base_rows, "room", lambda: tmp_path / "rows")
    return tmp_path / "rows"


class Sound(Level):
    """Level, of which nothing fails: `odd` still abstains on even prompts."""

    def __call__(self, prompts, media, group=None):
        scores = super().__call__(prompts, media, group)
        return replace(scores, failed=scores.failed & False)


def settings(**keys) -> EvalSettings:
    return EvalSettings(**({"prompts": "x", "count": 7, "guidance": SCALES, "steps": 4, "batch_size": 3} | keys))


def test_the_digest_is_of_all_that_reaches_a_sample_and_of_nothing_else(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "weights.safetensors").write_bytes(b"one")
    (model / "README.md").write_text("card")
    policy = PolicySettings(model="model")

    def digest(policy: PolicySettings = policy, prompts: str = "p", **keys) -> str:
        return drawing_digest([model], policy, settings(**keys), prompts)

    first = digest()
    rollouts = {"batch_size": 7, "dtype": "bfloat16", "sampler": policy.sampler.model_copy(update={"steps": 2})}
    assert digest(policy.model_copy(update=rollouts)) == first
    assert digest(batch_size=1, training_prompts=4, rewards=["clip"]) == first
    others = [digest(prompts="q"), digest(count=6), digest(seeds=[1]), digest(guidance=[1.0]), digest(steps=5)]
    others.append(digest(policy.model_copy(update={"call": {"height": 8}})))
    (model / "README.md").write_text("another card")
    assert digest() == first
    (model / "unet" / "weights.safetensors").write_bytes(b"two")
    others.append(digest())
    (model / "unet" / "weights.safetensors").write_bytes(b"one")
    (model / "unet" / "config.json").write_text("{}")
    others.append(digest())
    assert len({first, *others}) == 1 + len(others)


def test_rows_spare_the_base_and_change_nothing(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Abstentions included; an evaluation that asks for another reward, version or seed draws its base."""
    reward = Sound()
    trial = trial_of(Painter(), PROMPTS, [reward], metrics_of(reward), settings())
    write_rows(room, "painter", "abc", [(trial, trial.sweep("reference"))])
    fresh = evaluate(Painter(), PROMPTS, [], [reward], settings(), tmp_path / "fresh")
    policy = Painter()
    known = evaluate(policy, PROMPTS, [], [reward], settings(), tmp_path / "known", drawing="abc")
    assert known == fresh
    assert {which for which, *_ in policy.asked} == {"policy"}
    assert "the base's scores on 7 prompts are known: " in capsys.readouterr().err
    for other in (Sound("more"), Sound(version="2")):
        policy = Painter()
        evaluate(policy, PROMPTS, [], [other], settings(), tmp_path / "other", drawing="abc")
        assert {which for which, *_ in policy.asked} == {"reference", "policy"}
    policy = Painter()
    evaluate(policy, PROMPTS, [], [reward], settings(), tmp_path / "unknown", drawing="def")
    assert {which for which, *_ in policy.asked} == {"reference", "policy"}
    assert "are known" not in capsys.readouterr().err
    with pytest.raises(GenalignError, match=r"does not hold the base's rows \(its rows have shape"):
        evaluate(Painter(), PROMPTS, [], [reward], settings(seeds=[0, 1]), tmp_path / "x", drawing="abc")
    (room / "painter-abc.json").write_text('{"rewards": 3}')
    with pytest.raises(GenalignError, match="make it again by genalign lab build base-rows"):
        evaluate(Painter(), PROMPTS, [], [reward], settings(), tmp_path / "x", drawing="abc")


def test_a_failure_of_scoring_is_not_kept(room: Path) -> None:
    trial = trial_of(Painter(), PROMPTS, [Level()], metrics_of(Level()), settings())
    with pytest.raises(GenalignError, match="level failed on samples of the base"):
        write_rows(room, "painter", "abc", [(trial, trial.sweep("reference"))])
    assert not room.exists()


def test_rewards_of_one_name_are_drawn_apart_and_batches_too() -> None:
    one, two, other, whole = Level(), Level(version="2"), Level("other"), Level("whole", looks_at="batch")
    assert apart([one, two, whole, other]) == [[one, other], [two], [whole]]


def test_a_shipped_model_has_rows_which_are_those_of_a_fresh_evaluation(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the builder's file to eval.json, bit for bit, on tiny-flow, with a reward that runs in a worker."""
    recipe = tmp_path / "image-small.yaml"
    shutil.copy(shipped("pipelines", "image-nft.yaml"), recipe)
    monkeypatch.setattr("genalign.cli.base_rows.load_recipe", lambda name: load_recipe(name, SMALL))
    stale = room / "tiny-flow-old.json"
    room.mkdir()
    stale.write_text("{}")
    (file,) = build_base_rows(room, [str(recipe)])
    assert sorted(room.iterdir()) == [file]
    built = build(load_recipe(recipe, SMALL))
    assert built.drawing is not None
    assert file.name == f"tiny-flow-{built.drawing}.json"
    assert {one["name"] for one in json.loads(file.read_text())["rewards"]} == {"scene_facts", "judge"}
    trial = trial_of(
        built.policy, list(built.eval_prompts or ()), built.held_out, metrics_of(built.held_out[0]), settings_of(built)
    )
    found = read_rows(built.drawing, trial)
    assert found is not None
    np.testing.assert_array_equal(found[1], trial.sweep("reference"))
    asked = []
    monkeypatch.setattr("genalign.evaluation.trial.Trial.base", lambda *given: asked.append(given))
    known = measure(built, tmp_path / "known")
    assert asked == []
    monkeypatch.undo()
    monkeypatch.setattr(base_rows, "room", lambda: tmp_path / "none")
    assert measure(built, tmp_path / "fresh") == known


def settings_of(built) -> EvalSettings:
    assert built.recipe.eval is not None
    return built.recipe.eval


def test_a_model_of_the_user_has_no_drawing(tmp_path: Path) -> None:
    recipe = shipped("pipelines", "image-nft.yaml")
    assert build(load_recipe(recipe)).drawing is not None
    assert build(load_recipe(recipe, ["eval=null", "train.monitor=null"])).drawing is None
    shutil.copytree(shipped("assets", "tiny-flow"), tmp_path / "copy")
    assert build(load_recipe(recipe, [f"policy.model={tmp_path / 'copy'}"])).drawing is None
