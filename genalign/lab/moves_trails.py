"""What moves in a clip: the things of its frames, followed from frame to frame. The verifier's eyes, without a network.

Frames in which as many things are seen as the clip has are the anchors. In the others something is hidden, or gone, or
too much: things are expected where the anchors around them say, and where two overlap, both ways of drawing them there
are compared with the frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from genalign.lab.moves import ROUND
from genalign.lab.moves_clips import FRAMES, paste, stamp
from genalign.lab.moves_parts import (
    ANGLES,
    Part,
    Templates,
    ground_of,
    nearest_ground,
    parts_of,
    presence,
    sprite_state,
    templates,
    tint,
)

MOST = 3  # things that are followed
PRESENT = 0.6  # of a sprite's colour, below which it is not there
_ANOTHER = 24.0  # pixels of way that looking like another sprite counts for
_TURN = 0.01  # picture distance that a turn by one template counts for
_HIDDEN = 0.75  # of a sprite, beyond which nobody can tell whether it is there
_BETTER = 0.7  # of the error without a sprite, below which it is there


@dataclass(frozen=True)
class Trail:
    """One thing over the frames: `states` (9, 4) as a Path's; `visible` (9,) where it was found, or hidden by another;
    `tints` (9, 3), its colour less its sprite's where it stood alone, else nan; `sureness` of the name, in [0, 1]."""

    name: str
    states: np.ndarray
    visible: np.ndarray
    tints: np.ndarray
    sureness: float


@dataclass(frozen=True)
class Watched:
    """What was seen: the things; colours of the ground (9, 3), its name and how sure that is; frames (9,) in which
    there was more than these things; of two that overlap which is in front, with sureness, else None."""

    trails: list[Trail]
    grounds: np.ndarray
    background: str
    background_sureness: float
    crowded: np.ndarray
    front: tuple[int, float] | None


@dataclass
class _Thing:
    """A trail while it is followed: its part in each frame that has one, its sprite, and how it is turned (9,)."""

    parts: list[Part | None]
    name: int = 0
    sureness: float = 0.0
    angles: np.ndarray = field(default_factory=lambda: np.zeros(FRAMES))


def watch(clip: np.ndarray) -> Watched:
    """The things in a clip (9, 3, H, W) in [0, 1]."""
    images = clip.transpose(0, 2, 3, 1)
    grounds = np.stack([ground_of(image) for image in images])
    background, sureness = nearest_ground(np.median(grounds, axis=0))
    template = templates(background)
    parts = [parts_of(image, ground, template) for image, ground in zip(images, grounds, strict=True)]
    counts = np.asarray([len(row) for row in parts])
    parts = [row[:MOST] for row in parts]
    count = sorted(len(row) for row in parts)[-2]  # twice seen is no accident
    anchors = [t for t in range(FRAMES) if len(parts[t]) == count]
    things = _linked(parts, anchors, count)
    for thing in things:
        _name(thing, template)
    states = np.stack([_states(thing, template) for thing in things]) if things else np.zeros((0, FRAMES, 4))
    visible = np.zeros((count, FRAMES), bool)
    visible[:, anchors] = True
    votes: list[float] = []
    for t in set(range(FRAMES)) - set(anchors):
        if count == 2 and len(parts[t]) == 1 and _meet(states[:, t]):
            names = [template.names[thing.name] for thing in things]
            states[:, t], visible[:, t], vote = _overlapping(images[t], grounds[t], parts[t][0], names, states[:, t])
            votes.append(vote)
        else:
            _recover(things, parts[t], t, states, visible, template)
    trails = [_trail(thing, row, seen, template) for thing, row, seen in zip(things, states, visible, strict=True)]
    return Watched(trails, grounds, background, sureness, counts > count, _front(votes))


def _linked(parts: list[list[Part]], anchors: Sequence[int], count: int) -> list[_Thing]:
    """Things whose parts of one anchor and the next are the nearest in place and looks."""
    things = [_Thing([None] * FRAMES) for _ in range(count)]
    looks = {t: [int(part.unlike.min(axis=1).argmin()) for part in parts[t]] for t in anchors}
    order = list(range(count))
    for t in anchors:
        if t != anchors[0]:
            before = anchors[anchors.index(t) - 1]
            cost = np.zeros((count, count))
            for row, thing in enumerate(things):
                last, last_look = thing.parts[before], looks[before][order[row]]
                for column, part in enumerate(parts[t]):
                    assert last is not None
                    other = _ANOTHER * (last_look != looks[t][column])
                    cost[row, column] = np.hypot(part.x - last.x, part.y - last.y) + other
            order = [int(column) for column in linear_sum_assignment(cost)[1]]
        for thing, column in zip(things, order, strict=True):
            thing.parts[t] = parts[t][column]
    return things


def _name(thing: _Thing, template: Templates) -> None:
    """The sprite that fits most of its parts best, and the turns by which it fits them, changing little."""
    distances = np.full((FRAMES, len(template.names), ANGLES), np.nan)
    for t, part in enumerate(thing.parts):
        if part is not None:
            distances[t] = part.unlike
    best = np.nanmedian(distances.min(axis=2), axis=0)  # (K,)
    first, second = np.argsort(best)[:2]
    thing.name = int(first)
    margin = np.clip(2 * (best[second] - best[first]) / max(best[second], 1e-6), 0, 1)
    thing.sureness = float(margin * np.clip(1.5 - 2 * best[first], 0, 1))
    fixed = template.names[thing.name] in ROUND
    thing.angles = np.zeros(FRAMES) if fixed else _angles(np.nan_to_num(distances[:, thing.name]))


def _angles(distances: np.ndarray) -> np.ndarray:
    """The turns, in templates and unwrapped, (9,), of least distance (9, A) in all (Viterbi), between templates by a
    parabola."""
    indices = np.arange(ANGLES)
    step = np.abs(indices[:, None] - indices)
    change = _TURN * np.minimum(step, ANGLES - step)  # (A, A)
    total, back = distances[0], []
    for row in distances[1:]:
        costs = total[:, None] + change
        back.append(costs.argmin(axis=0))
        total = costs.min(axis=0) + row
    path = [int(total.argmin())]
    for row in reversed(back):
        path.append(int(row[path[-1]]))
    turns = np.asarray(path[::-1], float)
    for t, angle in enumerate(path[::-1]):
        before, here, after = (distances[t][(angle + shift) % ANGLES] for shift in (-1, 0, 1))
        if before + after > 2 * here and min(before, after) > here:
            turns[t] += 0.5 * (before - after) / (before + after - 2 * here)
    return np.asarray(np.unwrap(turns, period=ANGLES))


def _states(thing: _Thing, template: Templates) -> np.ndarray:
    """(9, 4): centre, size, degrees; between the frames in which it was seen, a straight line."""
    seen = [t for t, part in enumerate(thing.parts) if part is not None]
    rows = [
        (*sprite_state(part, template, thing.name, round(float(turn)) % ANGLES), turn * 360 / ANGLES)
        for part, turn in zip(thing.parts, thing.angles, strict=True)
        if part is not None
    ]
    columns = np.asarray(rows).T
    return np.column_stack([np.interp(np.arange(FRAMES), seen, column) for column in columns])


def _meet(states: np.ndarray) -> bool:
    """Whether two things (2, 4) are expected to touch."""
    gap = np.abs(states[0, :2] - states[1, :2])
    return bool((gap < states[:, 2].mean() + 3).all())


def _recover(
    things: list[_Thing], parts: Sequence[Part], t: int, states: np.ndarray, visible: np.ndarray, template: Templates
) -> None:
    """In a frame with too few or too many parts, each thing is the part that is most like it."""
    cost = np.zeros((len(things), len(parts)))
    for row, thing in enumerate(things):
        for column, part in enumerate(parts):
            unlike = float(part.unlike[thing.name].min())
            way = np.hypot(part.x - states[row, t, 0], part.y - states[row, t, 1])
            cost[row, column] = way + _ANOTHER * unlike
    for row, column in zip(*linear_sum_assignment(cost), strict=True):
        thing, part = things[row], parts[column]
        thing.parts[t] = part
        turned = template.names[thing.name] not in ROUND
        angle = int(part.unlike[thing.name].argmin()) if turned else 0
        states[row, t, :3] = sprite_state(part, template, thing.name, angle)
        visible[row, t] = True


def _overlapping(
    image: np.ndarray, ground: np.ndarray, part: Part, names: Sequence[str], expected: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """States (2, 4) of two things in one part, whether each is there, and by how much better the frame is explained
    with the second in front than with the first, in [-1, 1]."""
    rows, columns = ndimage.find_objects(part.mask.astype(int))[0]  # only there anything is drawn
    corner = np.asarray([columns.start, rows.start, 0, 0])
    window, mask = image[rows, columns], part.mask[rows, columns]
    fits = [_fit(window, ground, mask, names, expected - corner, front) for front in (0, 1)]
    front = int(fits[1][1] < fits[0][1])
    states, _ = fits[front]
    alphas = []
    for name, state in zip(names, states, strict=True):
        alone = np.zeros((*mask.shape, 4), np.float32)
        paste(alone, name, _rounded(state), _stamped)
        alphas.append(alone[..., 3])
    visible = np.ones(2, bool)
    whole = _composite(window.shape, ground, names, states, (1 - front, front))
    for k in (0, 1):
        shown = alphas[k] if k == front else alphas[k] * (1 - alphas[front])
        if shown.sum() > (1 - _HIDDEN) * alphas[k].sum():
            without = _composite(window.shape, ground, names, states, (1 - k,))
            errors = [float(np.abs(window - drawn)[shown > 0.3].sum()) for drawn in (whole, without)]
            visible[k] = errors[0] < _BETTER * errors[1]
    overlap = float((alphas[0] * alphas[1]).sum())
    vote = (fits[0][1] - fits[1][1]) / overlap if overlap > 4 else 0.0
    return states + corner, visible, float(np.clip(vote, -1, 1))


def _fit(
    image: np.ndarray, ground: np.ndarray, mask: np.ndarray, names: Sequence[str], expected: np.ndarray, front: int
) -> tuple[np.ndarray, float]:
    """The places near the expected ones at which two sprites explain a frame best, and the error that is left: a
    pattern search down to quarters of a pixel."""
    states = expected.copy()

    def error_at(trial: np.ndarray) -> float:
        drawn = _composite(image.shape, ground, names, trial, (1 - front, front))
        astray = np.hypot(*(trial[:, :2] - expected[:, :2]).T).sum()  # what is hidden stays where it is expected
        return float(np.abs(image - drawn).mean(axis=2)[mask].sum()) + 0.05 * float(astray)

    least = error_at(states)
    for step in (1.0, 1.0, 0.5, 0.25):
        for k in (0, 1):
            for dx, dy in ((-step, 0), (step, 0), (0, -step), (0, step)):
                trial = states.copy()
                trial[k, :2] += dx, dy
                if (error := error_at(trial)) < least:
                    states, least = trial, error
    return states, least


def _composite(
    shape: tuple[int, ...], ground: np.ndarray, names: Sequence[str], states: np.ndarray, order: Sequence[int]
) -> np.ndarray:
    """(H, W, 3): the sprites on the ground, in this order."""
    image = np.empty(shape, np.float32)
    image[:] = ground
    for k in order:
        paste(image, names[k], _rounded(states[k]), _stamped)
    return image


def _rounded(state: np.ndarray) -> np.ndarray:
    """To quarters of a pixel and five degrees, so that few sprites are drawn anew."""
    return np.asarray(np.round(state * [4, 4, 4, 0.2]) / [4, 4, 4, 0.2])


_stamped = lru_cache(maxsize=4096)(stamp)


def _front(votes: Sequence[float]) -> tuple[int, float] | None:
    """Which of two is in front, and how sure that is, from the votes of all frames in which they overlap."""
    total = float(np.sum(votes))
    if total == 0:
        return None
    return int(total > 0), float(np.clip(4 * abs(total) / len(votes), 0, 1))


def _trail(thing: _Thing, states: np.ndarray, visible: np.ndarray, template: Templates) -> Trail:
    visible, tints = visible.copy(), np.full((FRAMES, 3), np.nan)
    for t, part in enumerate(thing.parts):
        if part is not None:
            angle = round(float(states[t, 3]) * ANGLES / 360) % ANGLES
            visible[t] &= presence(part, template, thing.name, angle) >= PRESENT
            tints[t] = tint(part, template, thing.name, angle)
    return Trail(template.names[thing.name], states, visible, tints, thing.sureness)
