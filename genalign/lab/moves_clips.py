"""The clips of EmojiWorld moves: where each sprite is in each frame, and the frames.

There is one size. 9 frames are 1 + 2x4, which autoencoders of the Wan class hold as three latent frames. 48 px are the
least multiple of 16 (three halvings, patches of two) in which a sprite that is large enough to be known has room to go.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from genalign.lab.moves import DIRECTIONS, SPEEDS, TURNS, Move
from genalign.lab.sprites import CELL, sprites
from genalign.lab.world import BACKGROUNDS, Facts

FRAMES = 9
SIDE = 48  # pixels
RATE = 8.0  # frames a second
PACE = {"slow": (0.9, 1.4), "fast": (2.5, 3.1)}  # pixels a frame
LEG = (2.2, 3.0)  # pixels a frame of motions in two legs
MARGIN = 2  # pixels around a sprite of the sheet
MIDDLE = CELL / 2 + MARGIN
FINE = 4  # samples a pixel is averaged over, each way
TIMES = np.arange(FRAMES, dtype=np.float64)


@dataclass(frozen=True)
class Path:
    """One sprite over the frames: `states` (9, 4) are its centre x, y and its size in pixels, and by how many degrees
    it is turned clockwise. `contacts` are the frames in which it touches what it bounces off."""

    name: str
    states: np.ndarray
    contacts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Clip:
    """`paths` in the order in which they are drawn, the foremost last; `background` names a colour."""

    paths: tuple[Path, ...]
    background: str
    facts: Facts

    @property
    def contacts(self) -> list[int]:
        """The frames of every bounce."""
        return sorted(frame for path in self.paths for frame in path.contacts)


def choreograph(facts: Facts, rng: np.random.Generator) -> Clip:
    """Sprites on their ways, as the facts state; what they leave unsaid is drawn at random. None leaves the frame."""
    moves = facts["moves"]
    background = facts["background"] or str(rng.choice(list(BACKGROUNDS)))
    paths: tuple[Path, ...]
    if facts["passing"] is not None:
        mover, other = _passing(moves, rng)
        paths = (other, mover) if facts["passing"][1] == "in front of" else (mover, other)
    elif len(moves) == 2:
        paths = _side_by_side(moves, rng)
    else:
        paths = (_alone(moves[0], rng),)
    return Clip(paths, background, facts)


def _alone(move: Move, rng: np.random.Generator) -> Path:
    name, motion = move["name"], move["motion"]
    if len(motion) == 2:
        legs = [np.minimum(TIMES, 4), np.maximum(TIMES - 4, 0)]
        offsets = sum(np.outer(leg * rng.uniform(*LEG), DIRECTIONS[w]) for leg, w in zip(legs, motion, strict=True))
        return _somewhere(name, np.asarray(offsets), rng.uniform(15, 18), 0, rng)
    (word,) = motion
    if word in DIRECTIONS:
        return _somewhere(name, _straight(move, rng), rng.uniform(15, 19), 0, rng)
    if word in TURNS:
        angle = rng.uniform(11, 19) * TIMES * (1 if word == "clockwise" else -1)
        return _somewhere(name, np.zeros((FRAMES, 2)), rng.uniform(19, 25), angle, rng)
    if word in ("grows", "shrinks"):
        sizes = np.linspace(rng.uniform(11, 13.5), rng.uniform(20, 25), FRAMES)
        return _somewhere(name, np.zeros((FRAMES, 2)), sizes if word == "grows" else sizes[::-1], 0, rng)
    if word == "still":
        return _somewhere(name, np.zeros((FRAMES, 2)), rng.uniform(16, 23), 0, rng)
    return _bouncing(name, word, rng)


def _straight(move: Move, rng: np.random.Generator) -> np.ndarray:
    """Offsets (9, 2) from the first frame, at the stated speed."""
    word = move["motion"][0]
    if word == "still":
        return np.zeros((FRAMES, 2))
    pace = rng.uniform(*PACE[move["speed"] or str(rng.choice(SPEEDS))])
    return np.outer(TIMES * pace, DIRECTIONS[word])


def _somewhere(
    name: str, offsets: np.ndarray, size: np.ndarray | float, angle: np.ndarray | float, rng: np.random.Generator
) -> Path:
    """A path of these offsets that begins where the whole of it is at least a pixel inside the frame."""
    sizes = np.broadcast_to(np.asarray(size, float), FRAMES)
    turned = np.deg2rad(np.broadcast_to(np.asarray(angle, float), FRAMES))
    half = (sizes / 2 * (np.abs(np.cos(turned)) + np.abs(np.sin(turned))) + 1)[:, None]  # of the turned square
    low, high = (half - offsets).max(axis=0), (SIDE - half - offsets).min(axis=0)
    return Path(name, np.column_stack([rng.uniform(low, high) + offsets, sizes, np.rad2deg(turned)]))


def _bouncing(name: str, word: str, rng: np.random.Generator) -> Path:
    """It falls on the floor and rises by nine tenths, or comes back from a side; in one frame it just touches."""
    contact, size = int(rng.integers(3, 6)), rng.uniform(14, 17)
    left, right, _, bottom = (reach * size for reach in reaches(name))
    apart = TIMES - contact  # frames before and after the contact
    if word == "floor bounce":
        fall = rng.uniform(17, 22)
        back = 1.9 * fall * apart / contact - fall * (apart / contact) ** 2  # 0.95 of the speed, the same gravity
        height = np.where(apart < 0, fall * (1 - (TIMES / contact) ** 2), back)
        x, y = np.full(FRAMES, rng.uniform(size / 2 + 1, SIDE - size / 2 - 1)), SIDE - bottom - height
    else:
        away = rng.uniform(3.0, 4.0) * np.abs(apart)
        x = left + away if word == "left bounce" else SIDE - right - away
        y = np.full(FRAMES, rng.uniform(size / 2 + 1, SIDE - size / 2 - 1))
    return Path(name, np.column_stack([x, y, np.full(FRAMES, size), np.zeros(FRAMES)]), (contact,))


def _side_by_side(moves: Sequence[Move], rng: np.random.Generator) -> tuple[Path, ...]:
    """Two sprites in the two halves of the frame, which their motions do not leave."""
    across = 1 if {"left", "right"} & {move["motion"][0] for move in moves} else 0  # the axis that divides the halves
    paths = []
    for move, middle in zip(moves, rng.permutation([SIDE / 4, 3 * SIDE / 4]), strict=True):
        path = _somewhere(move["name"], _straight(move, rng), rng.uniform(13.5, 16.5), 0, rng)
        path.states[:, across] = middle + rng.uniform(-1, 1)
        paths.append(path)
    return tuple(paths)


def _passing(moves: Sequence[Move], rng: np.random.Generator) -> tuple[Path, Path]:
    """One from side to side, and the one in the middle that it hides or is hidden by."""
    mover, other = (move["name"] for move in moves)
    size, height = rng.uniform(12, 13.5), rng.uniform(9, SIDE - 9)
    x = np.linspace(size / 2 + 0.5, SIDE - size / 2 - 0.5, FRAMES)
    x = x if moves[0]["motion"][0] == "right" else x[::-1]
    y = np.full(FRAMES, np.clip(height + rng.uniform(-2, 2), 8, SIDE - 8))
    passing = np.column_stack([x, y, np.full(FRAMES, size), np.zeros(FRAMES)])
    still = [SIDE / 2 + rng.uniform(-0.5, 0.5), height, rng.uniform(12, 13.5), 0.0]
    return Path(mover, passing), Path(other, np.tile(still, (FRAMES, 1)))


@lru_cache(maxsize=64)
def reaches(name: str) -> tuple[float, float, float, float]:
    """How far a sprite is seen to the left, right, top and bottom of its square's centre, in sizes of the square."""
    alpha = sprites()[name].image[..., 3] > 0.5
    rows, columns = (np.flatnonzero(alpha.any(axis=axis)) for axis in (1, 0))
    left, right = 0.5 - columns[0] / CELL, (columns[-1] + 1) / CELL - 0.5
    return left, right, 0.5 - rows[0] / CELL, (rows[-1] + 1) / CELL - 0.5


def render(clip: Clip, rng: np.random.Generator | None = None) -> np.ndarray:
    """(9, 3, 48, 48) float32 in [0, 1]. With `rng` the background colour varies by up to 6/255 a channel."""
    colour = np.asarray(BACKGROUNDS[clip.background], np.float32)
    if rng is not None:
        colour = colour + rng.uniform(-6, 6, size=3).astype(np.float32)
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.float32)
    frames[:] = np.clip(colour, 0, 255) / 255
    for path in clip.paths:
        for frame, state in zip(frames, path.states, strict=True):
            paste(frame, path.name, state)
    return frames.transpose(0, 3, 1, 2).clip(0, 1)


Stamp = Callable[[str, float, float, float, float, int], np.ndarray]


def paste(image: np.ndarray, name: str, state: Sequence[float] | np.ndarray, draw: Stamp | None = None) -> None:
    """Draw a sprite of a state as a Path's into (H, W, 3), or with its alpha into (H, W, 4), whose corner is 0, 0; what
    is outside is cut off."""
    x, y, size, angle = (float(value) for value in state)
    side = math.ceil(size * 1.42) + 2
    left, top = round(x - side / 2), round(y - side / 2)
    rows = slice(max(top, 0), min(top + side, image.shape[0]))
    columns = slice(max(left, 0), min(left + side, image.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    sprite = (draw or stamp)(name, size, angle, x - left, y - top, side)
    seen = sprite[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    image[rows, columns] *= 1 - seen[..., 3:]
    image[rows, columns] += seen[..., : image.shape[2]]


def stamp(name: str, size: float, angle: float, x: float, y: float, side: int) -> np.ndarray:
    """A sprite at any place, size and angle: (side, side, 4) float32 in [0, 1], premultiplied alpha. Each pixel is the
    mean of 4x4 samples, so that motion of less than a pixel shows."""
    scale, turn = CELL / size, math.radians(angle)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    # from a sample's place to the sheet's: the inverse of turning clockwise by `angle` about the sprite's centre
    across = (cos / FINE, sin / FINE, MIDDLE - cos * x - sin * y)
    matrix = (*across, -sin / FINE, cos / FINE, MIDDLE + sin * x - cos * y)
    fine = _sheet(name).transform((FINE * side, FINE * side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(fine.reduce(FINE), dtype=np.float32) / 255


@lru_cache(maxsize=64)
def _sheet(name: str) -> Image.Image:
    """The sprite with a margin of nothing, so that its edge is as soft where it fills its cell."""
    cell = (sprites()[name].image * 255).round().astype(np.uint8)
    return Image.fromarray(np.pad(cell, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))), "RGBA").convert("RGBa")


def shown(clip: Clip) -> np.ndarray:
    """Which sprite each latent of a clip shows: its place in `sprites()`, or one more for the background; (3 * 6 * 6,)
    uint8, frames outermost. A latent shows what comes within its reach in any of its frames, the foremost of several.
    """
    names = list(sprites())
    places = np.full((1 + (FRAMES - 1) // 4, SIDE // 8, SIDE // 8), len(names), np.uint8)
    middles = 8 * np.arange(SIDE // 8) + 4.0
    for path in clip.paths:
        for time, (x, y, size, _) in enumerate(path.states):
            near = np.hypot(middles[:, None] - y, middles - x) < size / 2 + 1
            places[(time + 3) // 4][near] = names.index(path.name)
    return places.ravel()


def contact_sheet(clips: Sequence[np.ndarray], zoom: int = 2, gap: int = 2) -> np.ndarray:
    """Clips (F, 3, H, W) as rows of their frames: one (rows, columns, 3) uint8 picture to look at."""
    rows = []
    for clip in clips:
        frames = [np.pad(frame, ((0, 0), (0, gap), (0, gap)), constant_values=1) for frame in clip]
        rows.append(np.concatenate(frames, axis=2))
    picture = np.concatenate(rows, axis=1).transpose(1, 2, 0)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8).repeat(zoom, axis=0).repeat(zoom, axis=1)
