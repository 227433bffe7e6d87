"""What it means that an image shows the facts of a prompt, given what was seen in it. Shared by verifier and judge,
which see with different eyes."""

from collections import Counter
from collections.abc import Sequence

from genalign.lab.world import Facts

KINDS = ("objects", "count", "relation", "background")
Seen = Sequence[tuple[str, float, float]]  # name, centre x, centre y in pixels


def relation_margin(facts: Facts, seen: Seen) -> float:
    """By how many pixels the relation holds, for the best pair of such objects; minus infinity where one is missing.

    "a left of b": a's centre is at least 6 px further left, and by more than 0.75 of the distance on the other axis.
    """
    first, word, second = facts["relation"]
    margins = [
        min(along - 6, along - 0.75 * abs(across))
        for name_a, ax, ay in seen
        if name_a == first
        for name_b, bx, by in seen
        if name_b == second
        for along, across in [(bx - ax, by - ay) if word == "left of" else (by - ay, bx - ax)]
    ]
    return max(margins, default=-float("inf"))


def check(facts: Facts, seen: Seen, background: str) -> dict[str, bool | None]:
    """Strict truth of each kind of fact (None: not stated), and `all_facts`, the whole prompt.

    objects: every named object is there and nothing else is. count: each named object occurs exactly as often as
    stated. relation: `relation_margin` is positive. background: the stated colour.
    """
    counts = Counter(name for name, _, _ in seen)
    stated = {o["name"]: o["count"] for o in facts["objects"]}
    result: dict[str, bool | None] = {
        "objects": set(counts) == set(stated),
        "count": all(counts[name] == count for name, count in stated.items()),
        "relation": None if facts["relation"] is None else relation_margin(facts, seen) > 0,
        "background": None if facts["background"] is None else background == facts["background"],
    }
    result["all_facts"] = all(value for value in result.values() if value is not None)
    return result
