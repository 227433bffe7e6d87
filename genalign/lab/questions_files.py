"""The prompts files of questions: rows with a picture, and what rules and judges need to know of it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genalign.lab.questions import KINDS, Question, allows, ask, question_scene
from genalign.lab.world import render

CHECKED = ("count", "sum", "there", "where", "side")  # what a rule may check in training; a judge sees the others
PICTURES = {"train": 210, "heldout": 175}
EACH = {"train": 4, "heldout": 2}  # questions about a picture
COLOURS = 64  # of a picture's palette


def examples(
    rng: np.random.Generator, pictures: int, each: int, split: str = "train", kinds: Sequence[str] = KINDS
) -> tuple[np.ndarray, list[list[Question]]]:
    """Pictures (pictures, 64, 64, 3) of scenes, and up to `each` questions about each, at most one of a kind; all kinds
    come equally often as the first."""
    shown, asked = [], []
    for index in range(pictures):
        first = kinds[index % len(kinds)]
        scene = question_scene(first, rng, split)
        shown.append(render(scene, rng))
        others = [kind for kind in KINDS if kind != first and allows(kind, scene.facts)]
        asked.append([ask(kind, scene, rng) for kind in [first, *map(str, rng.permutation(others))][:each]])
    return np.stack(shown), asked


def build_questions(folder: Path, seed: int = 23) -> None:
    """train.jsonl and heldout.jsonl, of all kinds, about scenes split by combination; train-boxes.jsonl and
    heldout-boxes.jsonl, which ask of the same pictures where something is; and the pictures.

    In training files only what is CHECKED has its right answer; the facts `before` and `after` make a caption of the
    answer, for a judge.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index, (split, count) in enumerate(PICTURES.items()):
        rng = np.random.default_rng((seed, index))
        shown, asked = examples(rng, count, len(KINDS), split)
        rows, boxes = [], []
        for number, (picture, questions) in enumerate(zip(shown, asked, strict=True)):
            name = f"{split}-{number:03}.png"
            levels = Image.fromarray((picture * 255).round().astype(np.uint8))
            levels.quantize(COLOURS).save(folder / name, optimize=True)
            rest = sorted(questions[1:], key=lambda one: one.kind != "side")  # few scenes allow this one
            rows += [row_of(one, name, split) for one in [questions[0], *rest][: EACH[split]]]
            boxes += [row_of(one, name, split) for one in questions if one.kind == "where"]
        _write(folder / f"{split}.jsonl", rows)
        _write(folder / f"{split}-boxes.jsonl", boxes)


def row_of(question: Question, picture: str, split: str) -> dict[str, Any]:
    """A line of a prompts file."""
    known = split == "heldout" or question.kind in CHECKED
    before, after = question.stated or (None, None)
    facts = {
        "kind": question.kind,
        "answer": question.answer if known and not question.boxes else None,
        "boxes": [list(box) for box in question.boxes] or None,
        "before": before,
        "after": after,
    }
    return {"prompt": question.text, "image": picture, "facts": facts}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
