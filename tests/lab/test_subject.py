"""The held-out subject: its pictures, its prompts, and the rule that knows it."""

import json
from pathlib import Path

import numpy as np
import pytest

from genalign import build, load_recipe
from genalign.files.shipped import shipped
from genalign.lab.sprites import resized, sprites
from genalign.lab.subject import NAME, SHOWN, build_subject, likeness, picture, subject
from genalign.lab.world import BACKGROUNDS, place, render


def test_no_sprite_of_the_world_looks_like_it():
    own = subject(16)
    for name in sprites():
        assert np.abs(own - resized(name, 16)).mean() > 0.05, name


def test_the_rule_knows_it_and_nothing_else():
    rng = np.random.default_rng(0)
    assert min(likeness(picture(background, rng)) for background in BACKGROUNDS for _ in range(3)) > 0.65
    for name in sprites():
        facts = {"objects": [{"name": name, "count": 1}], "relation": None, "background": "white"}
        assert likeness(render(place(facts, rng), rng)) < 0.6, name
    assert likeness(np.ones((64, 64, 3), np.float32)) == 0


def test_what_is_shipped_is_what_is_built_and_the_exam_is_not_shown(tmp_path: Path):
    build_subject(tmp_path)
    here = shipped("assets", "emojiworld", "subject")
    assert {path.name for path in here.iterdir()} == {path.name for path in tmp_path.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (here / path.name).read_bytes() or path.suffix == ".png"  # a PNG packer may differ
    rows, exam = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "heldout")
    )
    assert len(rows) == 12
    assert all(NAME in row["prompt"] and (tmp_path / row["image"]).is_file() for row in rows)
    assert len({row["prompt"] for row in exam}) == len(exam) == 47
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in exam}
    assert {row["prompt"].split()[-2] for row in rows} == set(SHOWN)


def test_its_pictures_are_answers_and_are_not_asked_with():
    built = build(load_recipe("image-subject"))
    assert [prompt.text for prompt in built.rewarded_prompts] == [prompt.text for prompt in built.data.rows]
    assert all(prompt.media is not None for prompt in built.data.rows)
    assert all(prompt.media is None for prompt in built.rewarded_prompts)
    assert built.prompts_to_sample.rows == built.rewarded_prompts


@pytest.mark.parametrize("name", ["pipelines/image-subject.yaml", "rewards/image-likeness.yaml"])
def test_the_recipe_points_there(name: str):
    assert "emojiworld/subject" in shipped(*name.split("/")).read_text()
