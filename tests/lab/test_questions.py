"""Questions about scenes: their answers follow from what was placed, and their files are what rules and judges read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from genalign.data.prompts import read_prompts
from genalign.files.shipped import shipped
from genalign.lab import questions_files
from genalign.lab.questions import CARELESS, KINDS, Question, ask, careless, question_scene
from genalign.lab.sprites import sprites
from genalign.lab.world import NUMBERS, Scene, held_out
from genalign.reward.heads.answers import Answer, Boxes, boxes_of, matched
from genalign.types import Media, Prompt, Track

PLURALS = {sprite.plural: name for name, sprite in sprites().items()}


def drawn(kind: str, count: int, seed: int = 0, split: str | None = None) -> list[tuple[Scene, Question]]:
    rng = np.random.default_rng(seed)
    scenes = [question_scene(kind, rng, split) for _ in range(count)]
    return [(scene, ask(kind, scene, rng)) for scene in scenes]


def number_of(scene: Scene, name: str) -> int:
    return sum(placed == name for placed, *_ in scene.placed)


def centre(scene: Scene, name: str) -> tuple[float, float]:
    return next((x + size / 2, y + size / 2) for placed, x, y, size in scene.placed if placed == name)


def test_counts_and_sums_are_what_is_placed() -> None:
    for scene, question in drawn("count", 40):
        plural = question.text.removeprefix("how many ").removesuffix(" are there?")
        assert question.answer == NUMBERS[number_of(scene, PLURALS[plural])]
    for scene, question in drawn("sum", 40):
        both = re.fullmatch(r"how many (.*) and (.*) are there together\?", question.text)
        assert both is not None
        first, second = (number_of(scene, PLURALS[name]) for name in both.groups())
        assert question.answer == NUMBERS[first + second]
        assert question.habit == NUMBERS[first]


def test_sides_are_where_the_centres_are() -> None:
    for scene, question in drawn("side", 40):
        both = re.fullmatch(r"is the (.*) left of, right of, above or below the (.*)\?", question.text)
        assert both is not None
        (ax, ay), (bx, by) = (centre(scene, name) for name in both.groups())
        far = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}
        assert question.answer == max(far, key=lambda side: far[side])
        assert far[question.habit] == min(far.values())


def test_boxes_hold_all_of_what_is_asked_for_and_loose_ones_lie_around_them() -> None:
    several = 0
    for scene, question in drawn("where", 40):
        name = question.text.removesuffix("?").removeprefix("where is the ").removeprefix("where are the ")
        name = PLURALS.get(name, name)
        right = sorted((x, y, x + size, y + size) for placed, x, y, size in scene.placed if placed == name)
        assert [tuple(box) for box in question.boxes] == right
        assert boxes_of(question.answer).tolist() == [list(box) for box in right]
        loose = boxes_of(question.habit)
        assert loose.min() >= 0
        assert loose.max() <= 64
        assert matched(loose, boxes_of(question.answer), 0.2)[1] == 1
        several += len(right) > 1
    assert several > 5


def test_what_is_there_and_what_is_not() -> None:
    answers = []
    for scene, question in drawn("there", 60):
        name = re.sub(r"is there an? |\?", "", question.text)
        assert question.answer == ("yes" if number_of(scene, name) else "no")
        answers.append(question.answer)
    assert 15 < answers.count("yes") < 45


def test_objects_and_backgrounds_make_a_true_caption_with_what_stands_around_them() -> None:
    for kind in ("object", "background"):
        for scene, question in drawn(kind, 40):
            assert question.answer != question.habit
            assert question.stated is not None
            stated = " ".join(filter(None, [question.stated[0], question.answer, question.stated[1]]))
            if kind == "background":
                assert stated == question.think
                assert question.answer == scene.background
            else:
                names = [name for name in sprites() if name == question.answer or sprites()[name].plural in stated]
                assert any(number_of(scene, name) for name in names), (question, scene.facts)


def test_careless_answers_come_in_the_stated_shares() -> None:
    rng = np.random.default_rng(3)
    (_, question), *_ = drawn("side", 1)
    written = [careless(question, rng) for _ in range(2000)]
    habits = np.mean([f"{question.habit}" in re.sub("<think>.*</think>", "", text) for text in written])
    whole = np.mean([re.fullmatch("<think>.*</think><answer>.*</answer>", text) is not None for text in written])
    assert habits == pytest.approx(CARELESS["side"], abs=0.04)
    assert whole == pytest.approx(0.88, abs=0.03)


def test_splits_are_of_combinations() -> None:
    for kind in ("count", "side"):
        for split in ("train", "heldout"):
            for scene, _ in drawn(kind, 15, split=split):
                if sum(one["count"] > 1 for one in scene.facts["objects"]) < 2 and len(scene.facts["objects"]) == 1:
                    assert held_out(scene.facts) == (split == "heldout")


def test_files_hold_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions_files, "PICTURES", {"train": 14, "heldout": 7})
    questions_files.build_questions(tmp_path)
    train, exam = (read_prompts(tmp_path / f"{split}.jsonl") for split in ("train", "heldout"))
    assert len(train) == 14 * 4
    assert len(exam) == 7 * 2
    assert {row.facts["kind"] for row in train} == set(KINDS)
    for row in train:
        checked = row.facts["answer"] is not None or row.facts["boxes"] is not None
        assert checked == (row.facts["kind"] in questions_files.CHECKED)
        assert checked or row.facts["before"] is not None  # somebody can judge it
    assert all(row.facts["answer"] is not None or row.facts["boxes"] is not None for row in exam)
    assert all(row.facts["boxes"] for row in read_prompts(tmp_path / "heldout-boxes.jsonl"))
    media = exam.rows[0].media
    assert media is not None
    assert media["image"].row(0).shape == (3, 64, 64)


def test_the_shipped_training_questions_are_labelled_where_a_rule_may_check() -> None:
    rows = read_prompts(shipped("assets", "emojiworld", "questions", "train.jsonl")).rows
    of_kind = {kind: [row for row in rows if row.facts["kind"] == kind] for kind in KINDS}
    for kind, asked in of_kind.items():
        labelled = [row.facts["answer"] is not None or row.facts["boxes"] is not None for row in asked]
        assert set(labelled) == {kind in ("count", "sum", "there", "where", "side")}
    answers = {row.facts["answer"] for row in of_kind["side"]}
    assert answers == {"left of", "right of", "above", "below"}


def test_the_shipped_files_are_small_and_right_answers_are_right() -> None:
    folder = shipped("assets", "emojiworld", "questions")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1e6
    rows = [json.loads(line) for line in (folder / "heldout.jsonl").read_text().splitlines()]
    asked = [Prompt(row["prompt"], facts=row["facts"]) for row in rows]
    told = []
    for row in rows:
        boxes = ", ".join(map(str, row["facts"]["boxes"] or []))
        told.append(f"<think>so</think><answer>{row['facts']['answer'] or boxes}</answer>")
    media = Media(text=Track(told))
    assert bool(((Answer()(asked, media).total == 1) | (Boxes()(asked, media).total == 1)).all())
    combined = {row["image"] for row in rows}
    assert len(combined) == 175
