"""The rule verifier of EmojiWorld moves: follows what a clip shows without any network, and gives its confidence.

It never sees the held-out judge's weights, nor the judge its output. Eleven aspects: the whole, the whole of the facts,
six kinds of facts, and three qualities that every clip should have (smoothness, permanence, style).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from genalign.lab.moves import DIRECTIONS, KINDS, ROUND
from genalign.lab.moves_clips import FRAMES, RATE, SIDE, reaches
from genalign.lab.moves_facts import check, matched
from genalign.lab.moves_sound import onsets
from genalign.lab.moves_trails import Trail, Watched, watch
from genalign.lab.world import Facts

QUALITIES = ("smoothness", "permanence", "style")
ASPECTS = ("whole", "all_facts", *KINDS, *QUALITIES)
MOVED = 4.5  # pixels of way from which a thing moves
TURNED = 45.0  # degrees from which it turns
SCALED = 1.25  # times its size from which it grows
PACE = 1.95  # pixels a frame from which it is fast
TOUCH = 3.0  # pixels from an edge within which it touches it
BEND = 2.0  # pixels by which a way in two legs leaves the straight line
JERK = 3.0  # pixels a frame^3 at which motion is half smooth
DRIFT = 0.07  # of colour, at which style is half kept
TOLERANCE = 0.0625  # seconds (half a frame) by which sound and bounce may miss each other
Verdict = dict[str, tuple[float, float]]


def motion_of(trail: Trail) -> tuple[list[str], float]:
    """What a thing does, in the words of `moves.MOTIONS`, and how far that is from doing something else, in [0, 1]."""
    if (bounce := bounce_of(trail)) is not None:
        return [bounce[0]], 1.0
    states = trail.states
    way, turn = states[-1, :2] - states[0, :2], states[-1, 3] - states[0, 3]
    scaling = np.log(states[-1, 2] / states[0, 2])
    strengths = {
        "way": float(np.hypot(*way)) / MOVED,
        "turn": 0.0 if trail.name in ROUND else abs(float(turn)) / TURNED,
        "scaling": abs(float(scaling)) / np.log(SCALED),
    }
    strongest = max(strengths, key=lambda key: strengths[key])
    strength = strengths[strongest]
    sureness = float(np.clip(2 * abs(strength - 1), 0, 1))
    if strength < 1:
        return ["still"], sureness
    if strongest == "turn":
        return ["clockwise" if turn > 0 else "anticlockwise"], sureness
    if strongest == "scaling":
        return ["grows" if scaling > 0 else "shrinks"], sureness
    return _legs(states[:, :2]), sureness


def bounce_of(trail: Trail) -> tuple[str, int] | None:
    """Off what a thing bounces, and in which frame: the one in which it touches an edge, coming and going."""
    left, right, _, bottom = (reach * trail.states[:, 2] for reach in reaches(trail.name))
    x, y = trail.states[:, 0], trail.states[:, 1]
    gaps = {"floor bounce": SIDE - y - bottom, "left bounce": x - left, "right bounce": SIDE - x - right}
    for word, gap in gaps.items():
        frame = int(gap.argmin())
        if 0 < frame < FRAMES - 1 and gap[frame] < TOUCH:
            away = min(gap[:frame].max(), gap[frame + 1 :].max()) - gap[frame]
            if away > MOVED:
                return word, frame
    return None


def _legs(points: np.ndarray) -> list[str]:
    """The direction of a way (9, 2), or the two of a way that bends by nearly a right angle."""
    way = points[-1] - points[0]
    aside = (way[0] * (points - points[0])[:, 1] - way[1] * (points - points[0])[:, 0]) / np.hypot(*way)
    bend = int(np.abs(aside).argmax())
    if abs(aside[bend]) > BEND:
        words = [_direction(points[bend] - points[0]), _direction(points[-1] - points[bend])]
        if words[0] != words[1]:
            return words
    return [_direction(way)]


def _direction(way: np.ndarray) -> str:
    return max(DIRECTIONS, key=lambda word: float(np.dot(way, DIRECTIONS[word])))


def pace_of(trail: Trail) -> float:
    """Pixels a frame from the first frame to the last."""
    return float(np.hypot(*(trail.states[-1, :2] - trail.states[0, :2]))) / (FRAMES - 1)


def facts_of(watched: Watched) -> dict[str, Any]:
    """What was seen, written as the facts of a clip; every direction has its speed."""
    moves = []
    for trail in watched.trails:
        motion, _ = motion_of(trail)
        speed = ("fast" if pace_of(trail) > PACE else "slow") if len(motion) == 1 and motion[0] in DIRECTIONS else None
        moves.append({"name": trail.name, "motion": motion, "speed": speed})
    passing = None
    if watched.front is not None and len(moves) == 2:
        mover = int(np.argmax([pace_of(trail) for trail in watched.trails]))
        depth = "in front of" if watched.front[0] == mover else "behind"
        passing = [moves[mover]["name"], depth, moves[1 - mover]["name"]]
    return {"moves": moves, "passing": passing, "background": watched.background}


def smoothness(trail: Trail) -> float:
    """1 for even motion, 1/2 where the middle third difference of place and size, and of the rim of what turns, is
    JERK pixels: one bounce or bend leaves most of the six differences alone, frames out of order none."""
    states = trail.states.copy()
    turns = trail.name not in ROUND and np.ptp(states[:, 3]) > TURNED
    states[:, 3] = np.deg2rad(states[:, 3]) * states[:, 2] / 2 if turns else 0
    jerk = float(np.median(np.linalg.norm(np.diff(states, n=3, axis=0), axis=1)))
    return float(np.clip(1 - 0.5 * jerk / JERK, 0, 1))


def permanence(watched: Watched) -> float:
    """The share of frames in which each thing is there, or hidden by another, and nothing else is."""
    there = [trail.visible for trail in watched.trails]
    return float((np.all(there, axis=0) & ~watched.crowded).mean()) if there else 0.0


def style(watched: Watched) -> float:
    """1 where colours stay, 1/2 where the ground's or a thing's leaves its median by DRIFT in some frame."""
    colours = [watched.grounds, *(trail.tints for trail in watched.trails)]
    drifts = [np.abs(rows - np.nanmedian(rows, axis=0)).max(axis=1) for rows in colours if not np.isnan(rows).all()]
    return float(np.clip(1 - 0.5 * np.nanmax(drifts) / DRIFT, 0, 1))


def verify(clip: np.ndarray, facts: Facts) -> Verdict:
    """Score and confidence, both in [0, 1], for each of ASPECTS; (nan, 0) where the prompt does not state it.

    Facts give partial credit: object is the F1 of seen against stated names, motion the share of moves (each leg of two
    counts half), speed rises with its logarithm over a factor of two around PACE; order, passing and background are 0
    or 1. `all_facts` is strict; `whole` also asks that frames are smooth by half, all in place, and keep their style by
    half. Confidence is the sureness of what a score rests on.

    Raises:
        ValueError: the clip is not (9, 3, 48, 48) in [0, 1].
    """
    if clip.shape != (FRAMES, 3, SIDE, SIDE) or clip.min() < -0.01 or clip.max() > 1.01:
        raise ValueError(
            f"the verifier reads one ({FRAMES}, 3, {SIDE}, {SIDE}) clip in [0, 1], not shape {clip.shape} "
            f"in [{clip.min():.2f}, {clip.max():.2f}]"
        )
    watched = watch(clip)
    seen, trails = facts_of(watched), watched.trails
    strict = check(facts, seen)
    scores = {kind: float(bool(strict[kind])) for kind in KINDS if strict[kind] is not None}
    found, stated = {trail.name for trail in trails}, {move["name"] for move in facts["moves"]}
    scores["object"] = 2 * len(found & stated) / (len(found) + len(stated))
    scores["motion"] = float(np.mean([_motion_credit(*pair) for pair in matched(facts, seen)]))
    if "speed" in scores:
        scores["speed"] = _speed_credit(facts, seen, trails)
    scores["smoothness"] = min((smoothness(trail) for trail in trails), default=0.0)
    scores["permanence"], scores["style"] = permanence(watched), style(watched)
    sureness = _sureness(watched)
    result = {key: (scores[key], sureness[key]) if key in scores else (np.nan, 0.0) for key in (*KINDS, *QUALITIES)}
    good = scores["permanence"] == 1 and min(scores["smoothness"], scores["style"]) >= 0.5
    weakest = min(sureness[kind] for kind in KINDS if kind in scores)
    result["all_facts"] = (float(bool(strict["all_facts"])), weakest)
    result["whole"] = (float(bool(strict["all_facts"]) and good), weakest)
    return result


def _motion_credit(stated: Any, seen: Any) -> float:
    if seen is None:
        return 0.0
    wanted, did = set(stated["motion"]), set(seen["motion"])
    return 2 * len(wanted & did) / (len(wanted) + len(did))


def _speed_credit(facts: Facts, seen: Facts, trails: Sequence[Trail]) -> float:
    """The mean over the moves of a stated speed; 0 of what does not go in one direction."""
    credits = []
    for move, found in matched(facts, seen):
        if move["speed"] is not None:
            credit = 0.0
            if found is not None and found["speed"] is not None:
                trail = trails[next(k for k, one in enumerate(seen["moves"]) if one is found)]
                above = float(np.log2(max(pace_of(trail), 1e-6) / PACE))
                credit = float(np.clip(0.5 + (above if move["speed"] == "fast" else -above), 0, 1))
            credits.append(credit)
    return float(np.mean(credits))


def _sureness(watched: Watched) -> dict[str, float]:
    trails = watched.trails
    if not trails:
        return dict.fromkeys((*KINDS, *QUALITIES), 0.5)
    names = float(np.mean([trail.sureness for trail in trails]))
    seen = float(np.mean([trail.visible.mean() for trail in trails]))
    motion = seen * float(np.mean([motion_of(trail)[1] for trail in trails]))
    front = 0.5 if watched.front is None else watched.front[1]
    grounds = watched.background_sureness
    facts = {"object": names, "motion": motion, "speed": motion, "order": motion, "passing": front}
    return {**facts, "background": grounds, **dict.fromkeys(QUALITIES, 0.5 + 0.5 * names)}


def verify_batch(clips: np.ndarray, facts: Sequence[Facts]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`verify` over (B, 9, 3, 48, 48): aspect -> (score (B,), confidence (B,)); score nan where it is not stated."""
    rows = [verify(clip, each) for clip, each in zip(clips, facts, strict=True)]
    return {key: tuple(np.array([row[key][k] for row in rows]) for k in (0, 1)) for key in ASPECTS}  # type: ignore[misc]


def synchrony(clip: np.ndarray, wave: np.ndarray, sample_rate: float) -> tuple[float, float]:
    """Do bounces and knocks come together? The F1 of their times, and a confidence; (nan, 0) where there is neither.

    clip: (9, 3, 48, 48) in [0, 1] at 8 frames a second; wave: (channels, samples) in [-1, 1]. A knock belongs to the
    first bounce from which it is TOLERANCE away or less.
    """
    trails = watch(clip).trails
    bounces = [bounce[1] / RATE for bounce in map(bounce_of, trails) if bounce is not None]
    heard = onsets(wave, sample_rate)
    if not bounces and not heard:
        return np.nan, 0.0
    free = list(heard)
    for time in bounces:
        near = [onset for onset in free if abs(onset - time) <= TOLERANCE + 0.005]
        if near:
            free.remove(min(near, key=lambda onset: abs(onset - time)))
    together = len(heard) - len(free)
    sureness = float(np.mean([trail.sureness for trail in trails])) if trails else 0.5
    return 2 * together / (len(bounces) + len(heard)), sureness
