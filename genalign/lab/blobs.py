"""What stands out from a scene's background, and which sprite each of it is: the verifier's eyes, without any network.

A generated picture is softer than a rendered one and its objects may touch, so templates are compared blurred, at
three sizes and nine places, and what looks like no sprite is taken apart wherever its parts look more like some.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from genalign.lab.sprites import resized, sprites
from genalign.lab.world import SIZE

Box = tuple[int, int, int, int]  # top, bottom, left, right

_SIDE = 16  # samples across a box when it is compared with the sprites
_PADDED = 20  # samples across what is compared: the box and a margin, in which it may be shifted or larger
_SIDES = (14, 16, 18)  # sizes of the sprites: a soft edge makes a box larger or smaller than its object
_BLUR = 0.8  # samples of standard deviation
_CANDIDATES = 8  # sprites that are compared at every size and place
_CUTTABLE = 4  # pixels: a thinner stripe, as a model may draw, has no middle half
_SMALLEST = 40  # pixels of area below which a blob is dirt
_FAR = 0.35  # mean colour distance over the foreground at which a match is worth nothing
_CLEAR = 0.75  # match above which an object is not taken apart
_STANDS_OUT = 0.12  # colour distance from the ground that makes a pixel foreground
_CUTS = ((0.12, 1), (0.12, 2), (0.12, 3), (0.2, 1), (0.3, 1), (0.3, 2))  # (that distance, pixels eroded)


@dataclass(frozen=True)
class Blob:
    """One seen object: its likeliest name, centre in pixels, how well it matches, and how sure the name is, both in
    [0, 1]."""

    name: str
    x: float
    y: float
    match: float
    sureness: float


def blobs(image: np.ndarray) -> tuple[list[Blob], np.ndarray]:
    """The objects in one (64, 64, 3) image in [0, 1], and its background's colour (3,)."""
    ground, strength = segment(image)
    return [blob for box in boxes(strength) for blob in _explain(image, ground, strength, box)], ground


def segment(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The background's colour (3,), and how far each pixel (64, 64) is from it."""
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3)])
    ground = np.median(border, axis=0).astype(np.float32)
    return ground, ndimage.gaussian_filter(_greatest(np.abs(image - ground)), 0.6)


def _greatest(channels: np.ndarray) -> np.ndarray:
    """(64, 64, 3) -> (64, 64): as max(axis=2), which numpy takes twenty times as long for."""
    red, green, blue = np.moveaxis(channels, -1, 0)
    return np.maximum(np.maximum(red, green), blue)


def _explain(image: np.ndarray, ground: np.ndarray, strength: np.ndarray, box: Box) -> list[Blob]:
    """The box as one object, or as the two to four whose mean match is best."""
    best = [named(image, ground, box)]
    score = best[0].match
    inside = np.zeros((SIZE, SIZE), bool)
    inside[box[0] : box[1], box[2] : box[3]] = True
    tried: set[tuple[Box, ...]] = set()
    for parts in _cuts(np.where(inside, strength, 0), box) if score < _CLEAR else ():
        if not 2 <= len(parts) <= 4 or parts in tried:
            continue
        tried.add(parts)
        found = [named(_alone(image, ground, part, parts), ground, part) for part in parts]
        mean = float(np.mean([blob.match for blob in found])) - 0.02 * len(parts)  # in doubt, fewer objects
        if mean > score:
            best, score = found, mean
    return best


def _cuts(strength: np.ndarray, box: Box) -> Iterator[tuple[Box, ...]]:
    """Ways of taking a box apart: what is left when weak links are worn away, then a straight cut at its waist."""
    for threshold, eroded in _CUTS:
        yield tuple(_grown(part, eroded) for part in boxes(strength, threshold, eroded))
    top, bottom, left, right = box
    mask = strength[top:bottom, left:right] > _STANDS_OUT
    if bottom - top >= _CUTTABLE:
        row = top + _waist(mask.sum(axis=1))
        yield (top, row, left, right), (row, bottom, left, right)
    if right - left >= _CUTTABLE:
        column = left + _waist(mask.sum(axis=0))
        yield (top, bottom, left, column), (top, bottom, column, right)


def _waist(counts: np.ndarray) -> int:
    """Where, in the middle half, the fewest pixels of a line across stand out."""
    quarter = len(counts) // 4
    return quarter + int(counts[quarter:-quarter].argmin())


def boxes(strength: np.ndarray, threshold: float = _STANDS_OUT, eroded: int = 0) -> list[Box]:
    """Boxes of the components above the threshold; small satellites (sparkles, drops) join a near big one."""
    mask = strength > threshold
    if eroded:
        mask = ndimage.binary_erosion(mask, iterations=eroded, border_value=1)
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    parts = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        area = int((labels[rows, columns] == index).sum())
        parts.append([rows.start, rows.stop, columns.start, columns.stop, area])
    parts.sort(key=lambda part: -part[4])
    kept: list[list[int]] = []
    for part in parts:
        reach = [2 if part[4] < 0.3 * big[4] else -1 for big in kept]
        host = next((big for big, near in zip(kept, reach, strict=True) if _gap(big, part) <= near), None)
        if host is not None:
            host[0], host[1] = min(host[0], part[0]), max(host[1], part[1])
            host[2], host[3] = min(host[2], part[2]), max(host[3], part[3])
        elif part[4] >= _SMALLEST:
            kept.append(part)
    return [(part[0], part[1], part[2], part[3]) for part in kept]


def _gap(a: Sequence[int], b: Sequence[int]) -> int:
    return max(b[0] - a[1], a[0] - b[1], b[2] - a[3], a[2] - b[3])


def _grown(box: Box, by: int) -> Box:
    top, bottom, left, right = box
    return max(top - by, 0), min(bottom + by, SIZE), max(left - by, 0), min(right + by, SIZE)


def _alone(image: np.ndarray, ground: np.ndarray, box: Box, parts: Sequence[Box]) -> np.ndarray:
    """The image with ground where the other parts are."""
    alone = image.copy()
    for top, bottom, left, right in parts:
        if (top, bottom, left, right) != box:
            alone[top:bottom, left:right] = ground
    top, bottom, left, right = box
    alone[top:bottom, left:right] = image[top:bottom, left:right]
    return alone


def crop(image: np.ndarray, ground: np.ndarray, box: Box, samples: int = _SIDE) -> np.ndarray:
    """(samples, samples, 3): the square around a box, 16 samples a side, and a margin where there are more; background
    beyond the image's edge."""
    top, bottom, left, right = box
    side = max(bottom - top, right - left)
    y, x = (top + bottom) / 2, (left + right) / 2
    grid = (np.arange(samples) - (samples - 1) / 2) / _SIDE * side - 0.5
    where = np.empty((2, samples, samples))
    where[0], where[1] = (y + grid)[:, None], x + grid
    planes = [ndimage.map_coordinates(image[..., c], where, order=1, mode="constant", cval=ground[c]) for c in range(3)]
    return np.stack(planes, axis=-1).astype(np.float32)


def named(image: np.ndarray, ground: np.ndarray, box: Box) -> Blob:
    names, _, alphas = _templates()
    drawn = _drawn_on(tuple(ground.tolist()))
    seen = ndimage.gaussian_filter(crop(image, ground, box, _PADDED).transpose(2, 0, 1), (0, _BLUR, _BLUR))
    stands = np.clip(np.abs(seen - ground[:, None, None]).max(axis=0) / 0.25, 0, 1)  # (20,20)
    likely = np.argsort(_distance(drawn[:, 1], alphas[:, 1], seen, stands))[:_CANDIDATES]
    drawn, alphas = drawn[likely], alphas[likely]
    shifted, stood = seen.ravel()[_PLACES], stands.ravel()[_PLACES[:, 0]]  # (9,3,20,20), (9,20,20)
    places = [_distance(drawn, alphas, *pair) for pair in zip(shifted, stood, strict=True)]  # one fits the cache
    distance = np.min(places, axis=(0, 2))  # (8,)
    best, second = np.argsort(distance)[:2]
    match = float(np.clip(1 - distance[best] / _FAR, 0, 1))
    margin = float(np.clip((distance[second] - distance[best]) / max(distance[second], 1e-6) * 3, 0, 1))
    top, bottom, left, right = box
    return Blob(names[likely[best]], (left + right) / 2, (top + bottom) / 2, match, match * margin)


def _shifts() -> np.ndarray:
    """Where each element (9, 3, 20, 20) of a picture shifted to nine places comes from, in the picture laid flat."""
    flat = np.arange(3 * _PADDED**2).reshape(3, _PADDED, _PADDED)
    return np.stack([np.roll(flat, (down, right), axis=(1, 2)) for down in (-1, 0, 1) for right in (-1, 0, 1)])


_PLACES = _shifts()


@lru_cache(maxsize=1)
def _templates() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, and the sprites in three sizes, blurred: premultiplied colours (K, 3, 3, 20, 20) and alphas."""
    names = list(sprites())
    drawn = np.zeros((len(names), len(_SIDES), 4, _PADDED, _PADDED), np.float32)
    for row, name in enumerate(names):
        for column, side in enumerate(_SIDES):
            first = (_PADDED - side) // 2
            drawn[row, column, :, first : first + side, first : first + side] = resized(name, side).transpose(2, 0, 1)
    drawn = ndimage.gaussian_filter(drawn, (0, 0, 0, _BLUR, _BLUR))
    return names, drawn[:, :, :3].copy(), drawn[:, :, 3].copy()


@lru_cache(maxsize=1)
def _drawn_on(ground: tuple[float, float, float]) -> np.ndarray:
    """The sprites (K, 3, 3, 20, 20) drawn on a background of this colour: all boxes of a picture have the same."""
    _, colours, alphas = _templates()
    return colours + (1 - alphas[:, :, None]) * np.asarray(ground, np.float32)[:, None, None]


def _distance(drawn: np.ndarray, alphas: np.ndarray, seen: np.ndarray, stands: np.ndarray) -> np.ndarray:
    """Mean colour distance (...) of sprites (..., 3, 20, 20), whose alphas are (..., 20, 20), from one picture
    (3, 20, 20) over what is foreground in either: the picture stands out from the ground by (20, 20), 0 to 1."""
    apart = drawn - seen
    foreground = np.maximum(alphas, stands).sum(axis=(-1, -2))
    return np.asarray(np.abs(apart, out=apart).sum(axis=(-1, -2, -3)) / 3 / foreground)
