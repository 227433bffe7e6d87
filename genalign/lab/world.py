"""EmojiWorld: seeded 64x64 scenes, their facts, and their captions (true, changed and web-like).

Facts are plain data, the same in Python and in the .jsonl files:
`{"objects": [{"name": str, "count": int}], "relation": [a, "left of" | "above", b] | None, "background": str | None}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from genalign.lab.split import Facts, is_held_out, sample_split
from genalign.lab.sprites import resized, sprites

SIZE = 64  # pixels of a scene's side
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (247, 247, 245),
    "blue": (150, 200, 245),
    "green": (160, 220, 160),
    "pink": (250, 190, 215),
    "purple": (190, 165, 230),
    "gray": (98, 98, 106),
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
MAX_COUNT = 4


@dataclass(frozen=True)
class Scene:
    """`placed` rows are (name, left, top, size) in pixels; `background` names a colour; facts state everything true."""

    placed: tuple[tuple[str, int, int, int], ...]
    background: str
    facts: Facts


def combination(facts: Facts) -> str:
    """What the split holds out: the pair of objects, the counted object, or the single object on its background."""
    objects = sorted((o["name"], o["count"]) for o in facts["objects"])
    if len(objects) == 1 and objects[0][1] == 1:
        return f"{objects[0][0]} on {facts['background']}"
    return " + ".join(f"{count} {name}" for name, count in objects)


def held_out(facts: Facts) -> bool:
    """Whether the combination belongs to the held-out split (fixed: by a hash, without random state)."""
    if len(facts["objects"]) == 1 and facts["objects"][0]["count"] == 1 and facts["background"] is None:
        return False  # a lone object without a background is no combination: every sprite must be learnt
    return is_held_out(combination(facts))


def sample_facts(rng: np.random.Generator, split: str | None = None) -> dict[str, Any]:
    """Facts of a random scene, background always named. `split` is "train", "heldout" or None for either.

    Raises:
        ValueError: unknown split.
    """
    return sample_split(_any_facts, held_out, rng, split)


def _any_facts(rng: np.random.Generator) -> dict[str, Any]:
    kind = rng.choice(["one", "count", "pair", "relation"], p=[0.2, 0.3, 0.15, 0.35])
    picked = [str(n) for n in rng.choice(list(sprites()), size=2, replace=False)]
    relation = None
    if kind == "one":
        objects = [{"name": picked[0], "count": 1}]
    elif kind == "count":
        objects = [{"name": picked[0], "count": int(rng.integers(2, MAX_COUNT + 1))}]
    else:
        objects = [{"name": name, "count": 1} for name in picked]
        if kind == "relation":
            relation = [picked[0], str(rng.choice(["left of", "above"])), picked[1]]
    return {"objects": objects, "relation": relation, "background": str(rng.choice(list(BACKGROUNDS)))}


def place(facts: Facts, rng: np.random.Generator, smallest: int | None = None) -> Scene:
    """Put the objects down without overlap (2 px apart), obeying the relation by at least 14 px on its axis.

    The fewer the objects the larger they are, unless `smallest`, in pixels, is the lower bound whatever their number.
    """
    total = sum(o["count"] for o in facts["objects"])
    low, high = {1: (30, 40), 2: (24, 29), 3: (20, 26), 4: (19, 25)}[total]
    low = low if smallest is None else smallest
    names = [o["name"] for o in facts["objects"] for _ in range(o["count"])]
    while True:
        sizes = rng.integers(low, high + 1, size=total)
        spots = [(int(rng.integers(1, SIZE - s)), int(rng.integers(1, SIZE - s)), int(s)) for s in sizes]
        if all(_apart(a, b) for i, a in enumerate(spots) for b in spots[:i]) and _obeys(facts, names, spots):
            background = facts["background"] or str(rng.choice(list(BACKGROUNDS)))
            placed = tuple((name, *spot) for name, spot in zip(names, spots, strict=True))
            return Scene(placed, background, facts)


def _apart(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    (ax, ay, asize), (bx, by, bsize) = a, b
    return ax + asize + 2 <= bx or bx + bsize + 2 <= ax or ay + asize + 2 <= by or by + bsize + 2 <= ay


def _obeys(facts: Facts, names: list[str], spots: list[tuple[int, int, int]]) -> bool:
    if facts["relation"] is None:
        return True
    first, word, second = facts["relation"]
    (ax, ay), (bx, by) = ((x + s / 2, y + s / 2) for x, y, s in (spots[names.index(first)], spots[names.index(second)]))
    along, across = (bx - ax, by - ay) if word == "left of" else (by - ay, bx - ax)
    return along >= 14 and abs(across) < along


def render(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """(64, 64, 3) float32 in [0, 1]. With `rng` the background colour varies by up to 6/255 a channel."""
    colour = np.asarray(BACKGROUNDS[scene.background], dtype=np.float32)
    if rng is not None:
        colour = colour + rng.uniform(-6, 6, size=3).astype(np.float32)
    image = np.broadcast_to(np.clip(colour, 0, 255) / 255, (SIZE, SIZE, 3)).astype(np.float32)
    for name, left, top, size in scene.placed:
        sprite = resized(name, size)
        window = image[top : top + size, left : left + size]
        window *= 1 - sprite[..., 3:]
        window += sprite[..., :3]
    return np.clip(image, 0, 1)


def caption(facts: Facts, rng: np.random.Generator) -> str:
    """A true sentence, in one of several phrasings; a background of None is left unsaid."""
    objects, relation = facts["objects"], facts["relation"]
    if relation is not None:
        first, word, second = relation
        if rng.random() < 0.3:  # the same fact seen from the other side
            word, first, second = {"left of": "right of", "above": "below"}[word], second, first
        if word in ("left of", "right of") and rng.random() < 0.4:
            word = f"to the {word}"
        text = f"{article(first)} {first} {word} {article(second)} {second}"
    else:
        parts = [_counted(o["name"], o["count"], rng) for o in objects]
        if len(parts) == 2 and rng.random() < 0.5:
            parts.reverse()
        text = " and ".join(parts)
    opening = rng.choice(["", "", "", "a picture of ", "an image with "])
    if facts["background"] is None:
        return f"{opening}{text}"
    colour = facts["background"]
    ending = rng.choice([f"on a {colour} background", f"on {colour}", f"in front of a {colour} background"])
    return f"{opening}{text} {ending}"


def article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def _counted(name: str, count: int, rng: np.random.Generator) -> str:
    if count == 1:
        return f"{article(name)} {name}" if rng.random() < 0.85 else f"one {name}"
    number = NUMBERS[count] if rng.random() < 0.7 else str(count)
    return f"{number} {sprites()[name].plural}"


def change_one_fact(facts: Facts, rng: np.random.Generator, kinds: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Facts with exactly one of objects, count, relation or background made wrong (only those that are stated)."""
    several = any(o["count"] > 1 for o in facts["objects"])
    possible = ["objects"]
    if len(facts["objects"]) == 1:
        possible.append("count")
    if facts["relation"] is not None:
        possible.append("relation")
    if facts["background"] is not None:
        possible.append("background")
    kind = rng.choice([k for k in possible if kinds is None or k in kinds] or ["objects"])
    objects = [dict(o) for o in facts["objects"]]
    relation, background = facts["relation"], facts["background"]
    if kind == "objects":
        victim = int(rng.integers(len(objects)))
        taken = {o["name"] for o in objects}
        new = str(rng.choice([n for n in sprites() if n not in taken]))
        if relation is not None:
            relation = [new if n == objects[victim]["name"] else n for n in relation]
        objects[victim]["name"] = new
    elif kind == "count":
        wrong = [n for n in range(1 if not several else 2, MAX_COUNT + 1) if n != objects[0]["count"]]
        objects[0]["count"] = int(rng.choice(wrong))
    elif kind == "relation":
        first, word, second = relation
        relation = [second, word, first]
    else:
        background = str(rng.choice([b for b in BACKGROUNDS if b != background]))
    return {"objects": objects, "relation": relation, "background": background}


@dataclass(frozen=True)
class Shares:
    """How web-like captions differ from the truth: each stated fact of a kind is left out, or contradicted, with this
    probability. Objects are always named, as alt texts do."""

    omitted: Mapping[str, float]
    contradicted: Mapping[str, float]


WEB = Shares(
    {"background": 0.35, "relation": 0.15, "count": 0.0}, {"background": 0.25, "relation": 0.12, "count": 0.18}
)
DISTRACTED = Shares(  # what guidance cannot undo: tiny-flow's second edition
    {"background": 0.30, "relation": 0.20, "count": 0.0, "colour": 0.0},
    {"background": 0.40, "relation": 0.36, "count": 0.45, "colour": 0.30},
)


def web_caption(facts: Facts, rng: np.random.Generator, shares: Shares = WEB) -> str:
    """A caption as the web would write it: objects named, other facts omitted or contradicted in the stated shares.

    A contradiction that happens to name a held-out combination is left out, for it would teach that these words never
    mean what they say.
    """
    stated = dict(facts)
    for kind, omitted in shares.omitted.items():
        draw = rng.random()
        if not _can_be_wrong(kind, facts):
            continue
        if draw < omitted:
            stated[kind] = None
        elif draw < omitted + shares.contradicted[kind]:
            changed = change_colour(stated, rng) if kind == "colour" else change_one_fact(stated, rng, kinds=(kind,))
            stated = stated if held_out(changed) else changed
    return caption(stated, rng)


def _can_be_wrong(kind: str, facts: Facts) -> bool:
    if kind == "count":
        return len(facts["objects"]) == 1 and facts["objects"][0]["count"] > 1
    if kind == "relation":
        return facts["relation"] is not None
    if kind == "colour":
        return bool(_recolourings(facts))
    return True


def other_colours(name: str) -> list[str]:
    """The sprites of the same shape in another colour; of most there are none."""
    shape = name.split(" ")[-1]
    return [other for other in sprites() if " " in other and other.split(" ")[-1] == shape and other != name]


def change_colour(facts: Facts, rng: np.random.Generator) -> dict[str, Any]:
    """Facts with one object in another colour, of those that come in several."""
    changes = _recolourings(facts)
    old, new = changes[int(rng.integers(len(changes)))]
    relation = facts["relation"]
    if relation is not None:
        relation = [new if name == old else name for name in relation]
    objects = [{**o, "name": new} if o["name"] == old else o for o in facts["objects"]]
    return {"objects": objects, "relation": relation, "background": facts["background"]}


def _recolourings(facts: Facts) -> list[tuple[str, str]]:
    """(old, new) names; no pair of objects becomes twice the same."""
    names = [o["name"] for o in facts["objects"]]
    return [(old, new) for old in names for new in other_colours(old) if new not in names]
