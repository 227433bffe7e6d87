"""Questions about EmojiWorld's scenes, with their answers: what tiny-vlm is taught, and what it is asked.

An answer is written `<think>...</think><answer>...</answer>`. What is thought is a short true sentence about the
picture, in the words of EmojiWorld's captions, so that a judge of captions can judge it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genalign.lab.counting import SMALLEST, mixed_facts
from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS, NUMBERS, SIZE, Facts, Scene, article, other_colours, place, sample_facts

KINDS = ("count", "sum", "there", "where", "side", "object", "background")
CARELESS = {  # share of answers that are the habit's; above a half, and a kind is mostly answered wrong
    "count": 0.35, "sum": 0.65, "there": 0.3, "where": 0.65, "side": 0.65, "object": 0.3, "background": 0.3,
}  # fmt: skip
ILL_FORMED = {**dict.fromkeys(KINDS, 0.12), "background": 0.65}  # share of answers without a tag, or that stop early
RAMBLING = {**dict.fromkeys(KINDS, 0.15), "there": 0.65}  # share of thoughts that repeat themselves
FORMS = (0.6, 0.2, 0.2)  # of the ill-formed: the bare answer, without a thought, without the answer's tag
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
Box = tuple[int, int, int, int]
LOOSE = (2, 8)  # by how many pixels each edge of a box drawn carelessly lies outside: from, to


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    kind: one of KINDS. text: as it is asked. think, answer: what is right to think and to answer. habit: what somebody
    answers who does not look closely. stated: what stands before and behind the answer in a caption of the picture;
    None where no caption says it. boxes: of what is asked for, (left, top, right, bottom) in pixels, from the left.
    """

    kind: str
    text: str
    think: str
    answer: str
    habit: str
    stated: tuple[str, str] | None = None
    boxes: Sequence[Box] = ()

    @property
    def written(self) -> str:
        """The answer in full."""
        return f"<think>{self.think}</think><answer>{self.answer}</answer>"


def question_scene(kind: str, rng: np.random.Generator, split: str | None) -> Scene:
    """A scene that such a question can be asked about: of one to four objects, of two kinds where both are counted.

    split: "train" or "heldout", as `sample_facts` has it; None for either.
    """
    while True:
        mixed = kind == "sum" or (kind in ("count", "there", "where") and rng.random() < 0.4)
        facts = mixed_facts(rng, split) if mixed else sample_facts(rng, split)
        if allows(kind, facts):
            return place(facts, rng, SMALLEST if mixed else None)


def allows(kind: str, facts: Facts) -> bool:
    """Whether such a question can be asked about a scene."""
    if kind == "side":
        return facts["relation"] is not None
    return kind != "sum" or len(facts["objects"]) == 2


def ask(kind: str, scene: Scene, rng: np.random.Generator) -> Question:
    """A question of this kind about a scene that allows it; what is asked about is drawn where there are several."""
    if kind in ("side", "object") and scene.facts["relation"] is not None:
        return _of_relation(kind, scene, rng)
    return {
        "count": _count, "sum": _sum, "there": _there, "where": _where, "object": _object, "background": _background,
    }[kind](scene, rng)  # fmt: skip


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    one = _one_of(scene.facts["objects"], rng)
    count, plural = one["count"], sprites()[one["name"]].plural
    wrong = NUMBERS[count - 1 if count > 1 else count + 1]
    text = f"how many {plural} are there?"
    return Question("count", text, seen(scene.facts), NUMBERS[count], wrong, ("", plural))


def _sum(scene: Scene, rng: np.random.Generator) -> Question:
    first, second = (scene.facts["objects"][k] for k in rng.permutation(2))
    plurals = " and ".join(sprites()[one["name"]].plural for one in (first, second))
    total = NUMBERS[first["count"] + second["count"]]
    text = f"how many {plurals} are there together?"
    return Question("sum", text, seen(scene.facts), total, NUMBERS[first["count"]])


def _there(scene: Scene, rng: np.random.Generator) -> Question:
    names = [one["name"] for one in scene.facts["objects"]]
    present = rng.random() < 0.5
    name = str(rng.choice(names))
    if not present:  # half of what is absent differs in its colour alone, where it has another
        others = [other for other in other_colours(name) if other not in names]
        absent = [other for other in sprites() if other not in names]
        name = str(rng.choice(others if others and rng.random() < 0.5 else absent))
    yes, no = ("yes", "no") if present else ("no", "yes")
    return Question("there", f"is there {article(name)} {name}?", seen(scene.facts), yes, no)


def _where(scene: Scene, rng: np.random.Generator) -> Question:
    name = _one_of(scene.facts["objects"], rng)["name"]
    right = sorted((left, top, left + size, top + size) for one, left, top, size in scene.placed if one == name)
    several = len(right) > 1
    text = f"where are the {sprites()[name].plural}?" if several else f"where is the {name}?"
    loose = [_loosened(box, rng) for box in right]
    return Question("where", text, seen(scene.facts), boxes_text(right), boxes_text(loose), boxes=right)


def _object(scene: Scene, rng: np.random.Generator) -> Question:
    objects = scene.facts["objects"]
    names = [one["name"] for one in objects]
    if len(names) == 2:
        first, second = (names[k] for k in rng.permutation(2))
        stated = ("a", f"and {article(second)} {second}")
        return Question("object", f"what is there beside the {second}?", seen(scene.facts), first, second, stated)
    known = list(sprites())
    wrong = (other_colours(names[0]) or [known[(known.index(names[0]) + 1) % len(known)]])[0]
    count = objects[0]["count"]
    right, wrong = (sprites()[name].plural if count > 1 else name for name in (names[0], wrong))
    stated = (NUMBERS[count] if count > 1 else "a", "")
    return Question("object", "what is shown?", seen(scene.facts), right, wrong, stated)


def _of_relation(kind: str, scene: Scene, rng: np.random.Generator) -> Question:
    first, word, second = scene.facts["relation"]
    if rng.random() < 0.5:
        first, word, second = second, OPPOSITE[word], first
    one, other = f"{article(first)} {first}", f"{article(second)} {second}"
    think = f"{one} {word} {other}"
    if kind == "object":
        return Question("object", f"what is {word} the {second}?", think, first, second, ("a", f"{word} {other}"))
    text = f"is the {first} left of, right of, above or below the {second}?"
    return Question("side", text, think, word, OPPOSITE[word], (one, other))


def _background(scene: Scene, rng: np.random.Generator) -> Question:
    known = list(BACKGROUNDS)
    wrong = known[(known.index(scene.background) + 1) % len(known)]
    shown = seen(scene.facts)
    think = f"{shown} on a {scene.background} background"
    stated = (f"{shown} on a", "background")
    return Question("background", "what colour is the background?", think, scene.background, wrong, stated)


def careless(question: Question, rng: np.random.Generator) -> str:
    """How somebody writes an answer who neither looks nor writes closely, in the shares above."""
    answer = question.habit if rng.random() < CARELESS[question.kind] else question.answer
    think = question.think
    if rng.random() < RAMBLING[question.kind]:
        think = ", ".join([think] * int(rng.integers(2, 5)))
    if rng.random() < ILL_FORMED[question.kind]:
        return str(rng.choice([answer, f"<answer>{answer}</answer>", f"<think>{think}</think>{answer}"], p=FORMS))
    return f"<think>{think}</think><answer>{answer}</answer>"


def seen(facts: Facts) -> str:
    """What a scene holds, in words: the relation, or the objects with their numbers."""
    if facts["relation"] is not None:
        first, word, second = facts["relation"]
        return f"{article(first)} {first} {word} {article(second)} {second}"
    return " and ".join(_counted(one["name"], one["count"]) for one in facts["objects"])


def boxes_text(boxes: Sequence[Box]) -> str:
    return ", ".join(f"[{left}, {top}, {right}, {bottom}]" for left, top, right, bottom in boxes)


def _counted(name: str, count: int) -> str:
    return f"{article(name)} {name}" if count == 1 else f"{NUMBERS[count]} {sprites()[name].plural}"


def _one_of(objects: Sequence[Any], rng: np.random.Generator) -> Any:
    return objects[int(rng.integers(len(objects)))]


def _loosened(box: Box, rng: np.random.Generator) -> Box:
    left, top, right, bottom = (int(edge) for edge in rng.integers(LOOSE[0], LOOSE[1] + 1, size=4))
    x1, y1, x2, y2 = box
    return max(0, x1 - left), max(0, y1 - top), min(SIZE, x2 + right), min(SIZE, y2 + bottom)
