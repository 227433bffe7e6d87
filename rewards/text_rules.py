"""Rules for text: does a caption say what it was asked to say? Copy this file and change it; see scene_rules.py."""

import re

from genalign.lab.sprites import sprites
from genalign.reward import reward

NUMBERS = {1: "a|an|one", 2: "two|2", 3: "three|3", 4: "four|4"}
COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@reward
def names_objects(text, objects):
    """Mean over the objects asked for: 1 where the caption names one with its number, 0.5 where it only names it.

    A caption that names none may have used other words, so the rule is less sure of it.
    """
    return [judged(said.lower(), asked) for said, asked in zip(text, objects, strict=True)]


@reward
def says_facts(text, facts):
    """The number that answers a question, where the prompt has a fact `answer`; its objects, where it has those."""
    rows = zip((said.lower() for said in text), facts, strict=True)
    return [judged(t, f.get("objects")) if f.get("answer") is None else answered(t, f["answer"]) for t, f in rows]


def answered(said, answer):
    """1 where the last number said is the answer, else 0; less sure where none is said, silent where none is asked."""
    try:
        wanted = float(answer)
    except (TypeError, ValueError):
        return None
    numbers = re.findall(rf"-?\d+(?:\.\d+)?|\b(?:{'|'.join(COUNTED)})\b", said)
    if not numbers:
        return 0.0, 0.5
    last = numbers[-1]
    return float(wanted == (COUNTED.index(last) if last in COUNTED else float(last))), 1.0


def judged(said, objects):
    if not objects:
        return None
    scores = [named(said, o["name"], o["count"]) for o in objects]
    return sum(scores) / len(scores), 1.0 if any(scores) else 0.5


def named(said, name, count):
    words = f"{re.escape(name)}|{re.escape(sprites()[name].plural)}"
    if re.search(rf"\b({NUMBERS[count]}) ({words})\b", said):
        return 1.0
    return 0.5 if re.search(rf"\b({words})\b", said) else 0.0
