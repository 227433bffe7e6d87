"""What it means that a clip shows the facts of a prompt, given what was seen in it. Shared by verifier and judge, which
see with different eyes and write down what they saw as facts."""

from genalign.lab.moves import KINDS, Move, is_stated
from genalign.lab.world import Facts


def matched(stated: Facts, seen: Facts) -> list[tuple[Move, Move | None]]:
    """Each stated move with what was seen of this object, or else with what was seen of an object that nobody named."""
    names = {move["name"] for move in stated["moves"]}
    by_name = {move["name"]: move for move in seen["moves"]}
    others = [move for move in seen["moves"] if move["name"] not in names]
    pairs: list[tuple[Move, Move | None]] = []
    for move in stated["moves"]:
        found = by_name.get(move["name"]) or (others.pop(0) if others else None)
        pairs.append((move, found))
    return pairs


def check(stated: Facts, seen: Facts) -> dict[str, bool | None]:
    """Strict truth of each kind of fact (None: not stated), and `all_facts`, the whole prompt.

    object: every named object is there, once, and nothing else is. motion: each goes where it should, whatever comes
    first; order: in this order. speed: of each that is stated. passing: who passes whom, before or behind it.
    """
    pairs = matched(stated, seen)
    result: dict[str, bool | None] = {
        "object": sorted(move["name"] for move in stated["moves"]) == sorted(move["name"] for move in seen["moves"]),
        "motion": all(found is not None and set(move["motion"]) == set(found["motion"]) for move, found in pairs),
        "speed": all(found is not None and move["speed"] in (None, found["speed"]) for move, found in pairs),
        "order": all(
            found is not None and list(found["motion"]) == list(move["motion"])
            for move, found in pairs
            if len(move["motion"]) == 2
        ),
        "passing": seen["passing"] == stated["passing"],
        "background": seen["background"] == stated["background"],
    }
    result = {kind: result[kind] if is_stated(kind, stated) else None for kind in KINDS}
    result["all_facts"] = all(value for value in result.values() if value is not None)
    return result
