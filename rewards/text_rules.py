"""Rules for text: does a caption say what it was asked to say? Copy this file and change it; see scene_rules.py."""

import re

from genalign.lab.sprites import sprites
from genalign.reward import reward

NUMBERS = {1: "a|an|one", 2: "two|2", 3: "three|3", 4: "four|4"}


@reward
def names_objects(text, objects):
    """Mean over the objects asked for: 1 where the caption names one with its number, 0.5 where it only names it.

    A caption that names none may have used other words, so the rule is less sure of it.
    """
    return [judged(said.lower(), asked) for said, asked in zip(text, objects, strict=True)]


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
