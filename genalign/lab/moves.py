"""EmojiWorld moves: what happens in a clip as facts, and its captions (true, changed and web-like).

Facts are plain data, the same in Python and in the .jsonl files: `{"moves": [{"name": str, "motion": [str] or
[first, then], "speed": "slow" | "fast" | None}], "passing": [a, "in front of" | "behind", b] | None, "background":
str | None}`. Only a motion in one direction has a speed; the one that passes stands first of the moves.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from genalign.lab.split import is_held_out, sample_split
from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS, Facts, Shares, article

Move = Mapping[str, Any]
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y
TURNS = ("clockwise", "anticlockwise")
SCALINGS = ("grows", "shrinks")
BOUNCES = ("floor bounce", "left bounce", "right bounce")
ORDERS = tuple((a, b) for a in DIRECTIONS for b in DIRECTIONS if (a in ("left", "right")) != (b in ("left", "right")))
MOTIONS: tuple[tuple[str, ...], ...] = (
    *((word,) for word in (*DIRECTIONS, *TURNS, *SCALINGS, "still", *BOUNCES)),
    *ORDERS,
)
SPEEDS = ("slow", "fast")
DEPTHS = ("in front of", "behind")
KINDS = ("object", "motion", "speed", "order", "passing", "background")
# These look alike at all angles, or at five: that they turn could not be seen.
ROUND = ("sun", "basketball", "star")

VERBS = {
    "left": ("moves left", "moves to the left", "goes left"),
    "right": ("moves right", "moves to the right", "goes right"),
    "up": ("moves up", "goes up", "rises"),
    "down": ("moves down", "goes down", "sinks"),
    "clockwise": ("turns clockwise", "rotates clockwise", "spins clockwise"),
    "anticlockwise": ("turns anticlockwise", "rotates anticlockwise", "spins anticlockwise"),
    "grows": ("grows", "becomes larger", "gets bigger"),
    "shrinks": ("shrinks", "becomes smaller", "gets smaller"),
    "still": ("stays still", "stands still", "does not move"),
    "floor bounce": ("bounces on the floor", "bounces off the floor", "falls and bounces"),
    "left bounce": ("bounces off the left edge", "bounces back from the left edge"),
    "right bounce": ("bounces off the right edge", "bounces back from the right edge"),
}
ORDERED = (
    "moves first {} and then {}",
    "moves {} and then {}",
    "goes {} and afterwards {}",
    "moves {} before it goes {}",
)
ADVERBS = {"slow": ("slowly", "at a low speed"), "fast": ("fast", "quickly")}


def combinations(facts: Facts) -> list[str]:
    """What the split holds out: an object with its motion, a pair of such, and who passes whom on which side."""
    parts = sorted(f"{move['name']} {' then '.join(move['motion'])}" for move in facts["moves"])
    whole = [" + ".join(parts)] if len(parts) > 1 else []
    return parts + whole + ([" ".join(facts["passing"])] if facts["passing"] is not None else [])


def held_out(facts: Facts) -> bool:
    """Whether one of the combinations belongs to the held-out split (fixed: by a hash, without random state)."""
    return any(map(is_held_out, combinations(facts)))


def sample_facts(rng: np.random.Generator, split: str | None = None) -> dict[str, Any]:
    """Facts of a random clip, background and speeds always named. `split` is "train", "heldout" or None for either.

    Raises:
        ValueError: unknown split.
    """
    return sample_split(_any_facts, held_out, rng, split)


def sample_pair(rng: np.random.Generator, split: str | None = None) -> dict[str, Any]:
    """Facts of a random clip of two objects; otherwise as `sample_facts`."""
    while True:
        facts = sample_facts(rng, split)
        if len(facts["moves"]) == 2:
            return facts


def _any_facts(rng: np.random.Generator) -> dict[str, Any]:
    groups = {"direction": 0.27, "turn": 0.1, "scaling": 0.1, "still": 0.05, "bounce": 0.16}  # of one object
    groups |= {"order": 0.12, "pair": 0.1, "passing": 0.1}
    group = str(rng.choice(list(groups), p=list(groups.values())))
    first, second = (str(name) for name in rng.choice(list(sprites()), size=2, replace=False))
    passing = None
    if group == "direction":
        moves = [_move(first, str(rng.choice(list(DIRECTIONS))), rng)]
    elif group == "turn":
        moves = [_move(str(rng.choice(turnable())), str(rng.choice(TURNS)), rng)]
    elif group == "scaling":
        moves = [_move(first, str(rng.choice(SCALINGS)), rng)]
    elif group == "still":
        moves = [_move(first, "still", rng)]
    elif group == "bounce":
        moves = [_move(first, str(rng.choice(BOUNCES)), rng)]
    elif group == "order":
        moves = [{"name": first, "motion": list(ORDERS[rng.integers(len(ORDERS))]), "speed": None}]
    elif group == "pair":
        axis = ("left", "right") if rng.random() < 0.5 else ("up", "down")  # side by side they never meet
        moves = [_move(first, str(rng.choice(axis)), rng), _move(second, str(rng.choice([*axis, "still"])), rng)]
    else:
        motion = [str(rng.choice(["left", "right"]))]
        moves = [{"name": first, "motion": motion, "speed": None}, _move(second, "still", rng)]
        passing = [first, str(rng.choice(DEPTHS)), second]
    return {"moves": moves, "passing": passing, "background": str(rng.choice(list(BACKGROUNDS)))}


def _move(name: str, word: str, rng: np.random.Generator) -> dict[str, Any]:
    return {"name": name, "motion": [word], "speed": str(rng.choice(SPEEDS)) if word in DIRECTIONS else None}


def turnable() -> list[str]:
    """The sprites of which one sees that they turn."""
    return [name for name in sprites() if name not in ROUND]


def caption(facts: Facts, rng: np.random.Generator) -> str:
    """A true sentence, in one of several phrasings; a speed or background of None is left unsaid."""
    if facts["passing"] is not None:
        text = _passing(facts, rng)
    else:
        parts = [f"{_named(move['name'])} {_verb(move, rng)}" for move in facts["moves"]]
        if len(parts) == 2 and rng.random() < 0.5:
            parts.reverse()
        text = rng.choice([" and ", " while "]).join(parts)
    if facts["background"] is None:
        return str(text)
    colour = facts["background"]
    return f"{text} {rng.choice([f'on a {colour} background', f'on {colour}', f'over a {colour} background'])}"


def _named(name: str) -> str:
    return f"{article(name)} {name}"


def _verb(move: Move, rng: np.random.Generator) -> str:
    if len(move["motion"]) == 2:
        return str(rng.choice(ORDERED)).format(*move["motion"])
    verb = str(rng.choice(VERBS[move["motion"][0]]))
    if move["speed"] is None:
        return verb
    adverb = str(rng.choice(ADVERBS[move["speed"]]))
    return f"{adverb} {verb}" if adverb.endswith("ly") and rng.random() < 0.5 else f"{verb} {adverb}"


def _passing(facts: Facts, rng: np.random.Generator) -> str:
    mover, depth, other = facts["passing"]
    verb = _verb(facts["moves"][0], rng)
    side = facts["moves"][0]["motion"][0]
    forms = [f"{_named(mover)} {verb} {depth} {_named(other)}"]
    forms.append(f"{_named(other)} {_verb(facts['moves'][1], rng)} while {_named(mover)} {verb} {depth} it")
    if facts["moves"][0]["speed"] is None:
        forms.append(f"{_named(mover)} passes {depth} {_named(other)} to the {side}")
    return str(rng.choice(forms))


def change_one_fact(facts: Facts, rng: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """Facts with exactly one of KINDS made wrong, of those that are stated; the object where none of `kinds` is."""
    kind = str(rng.choice([k for k in kinds if is_stated(k, facts)] or ["object"]))
    moves = [{**move, "motion": list(move["motion"])} for move in facts["moves"]]
    passing, background = facts["passing"], facts["background"]
    victim = moves[int(rng.integers(len(moves)))]
    if kind == "object":
        old = victim["name"]
        others = turnable() if victim["motion"][0] in TURNS else list(sprites())
        victim["name"] = str(rng.choice([n for n in others if n not in [move["name"] for move in moves]]))
        passing = passing and [victim["name"] if word == old else word for word in passing]
    elif kind == "motion":
        victim = moves[0] if passing is not None else victim
        victim["motion"] = _another_motion(facts, victim, rng)
        victim["speed"] = victim["speed"] if victim["motion"][0] in DIRECTIONS else None
    elif kind == "speed":
        victim = next(move for move in ([victim, *moves]) if move["speed"] is not None)
        victim["speed"] = next(speed for speed in SPEEDS if speed != victim["speed"])
    elif kind == "order":
        moves[0]["motion"].reverse()
    elif kind == "passing":
        passing = [passing[0], next(depth for depth in DEPTHS if depth != passing[1]), passing[2]]
    else:
        background = str(rng.choice([b for b in BACKGROUNDS if b != background]))
    return {"moves": moves, "passing": passing, "background": background}


def is_stated(kind: str, facts: Facts) -> bool:
    """Whether facts say anything of this kind."""
    if kind == "speed":
        return any(move["speed"] is not None for move in facts["moves"])
    if kind == "order":
        return any(len(move["motion"]) == 2 for move in facts["moves"])
    return kind in ("object", "motion") or facts[kind] is not None


def _another_motion(facts: Facts, move: Move, rng: np.random.Generator) -> list[str]:
    """Of two legs one goes the other way; who passes comes from the other side; of a pair one goes elsewhere."""
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    motion = list(move["motion"])
    if len(motion) == 2:
        leg = int(rng.integers(2))
        motion[leg] = opposite[motion[leg]]
        return motion
    if facts["passing"] is not None:
        return [opposite[motion[0]]]
    words = [*DIRECTIONS, "still"] if len(facts["moves"]) == 2 else [word for (word, *more) in MOTIONS if not more]
    return [str(rng.choice([w for w in words if w != motion[0] and (w not in TURNS or move["name"] not in ROUND)]))]


WEB = Shares(  # where tiny-video starts from; contradictions rather than omissions, which guidance undoes
    {"speed": 0.25, "background": 0.30},
    {"object": 0.10, "motion": 0.35, "speed": 0.35, "order": 0.35, "passing": 0.35, "background": 0.35},
)


def web_caption(facts: Facts, rng: np.random.Generator, shares: Shares = WEB) -> str:
    """A caption as the web would write it: speed and background left out, any kind contradicted, in these shares.

    A contradiction that happens to name a held-out combination is left out, for it would teach that these words never
    mean what they say.
    """
    stated: dict[str, Any] = {**facts, "moves": [dict(move) for move in facts["moves"]]}
    for kind, contradicted in shares.contradicted.items():
        omitted, draw = shares.omitted.get(kind, 0.0), rng.random()
        if not is_stated(kind, stated):
            continue
        if draw < omitted:
            stated = without(kind, stated)
        elif draw < omitted + contradicted:
            changed = change_one_fact(stated, rng, (kind,))
            stated = stated if held_out(changed) else changed
    return caption(stated, rng)


def without(kind: str, facts: Facts) -> dict[str, Any]:
    """Facts that leave the speed or the background unsaid; a caption cannot do without the others."""
    if kind == "speed":
        return {**facts, "moves": [{**move, "speed": None} for move in facts["moves"]]}
    if kind == "background":
        return {**facts, "background": None}
    raise ValueError(f"only speed and background can be left out of a caption, not {kind!r}")
