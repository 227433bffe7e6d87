"""The rule verifier: reads a scene without any network, and says how sure it is.

Background by the median of the border; objects by connected components, each compared with every sprite drawn on
that background. It never sees the held-out judge's weights, nor the judge its output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from genalign.lab.facts import KINDS, check, relation_margin
from genalign.lab.sprites import resized, sprites
from genalign.lab.world import BACKGROUNDS, SIZE, Facts

Box = tuple[int, int, int, int]  # top, bottom, left, right

_SIDE = 16  # pixels at which a blob is compared with the sprites
_SMALLEST = 40  # pixels of area below which a blob is dirt
_FAR = 0.16  # mean colour distance at which a match is worth nothing


@dataclass(frozen=True)
class Blob:
    """One seen object: its likeliest name, centre in pixels, and how sure the name is, in [0, 1]."""

    name: str
    x: float
    y: float
    sureness: float


@lru_cache(maxsize=1)
def _templates() -> tuple[list[str], np.ndarray]:
    names = list(sprites())
    return names, np.stack([resized(name, _SIDE) for name in names])  # (K, 16, 16, 4) premultiplied


def look(image: np.ndarray) -> tuple[list[Blob], str, float]:
    """Objects, background name and the background's sureness in one (64, 64, 3) image in [0, 1]."""
    ground, boxes = segment(image)
    palette = np.asarray(list(BACKGROUNDS.values()), dtype=np.float32) / 255
    distance = np.abs(palette - ground).mean(axis=1)
    nearest, second = np.argsort(distance)[:2]
    background_sureness = float(
        np.clip(1 - distance[nearest] / max(distance[second], 1e-6), 0, 1) * (distance[nearest] < 0.1)
    )
    blobs = [_name_blob(image, ground, box) for box in boxes]
    return blobs, list(BACKGROUNDS)[nearest], background_sureness


def segment(image: np.ndarray) -> tuple[np.ndarray, list[Box]]:
    """The background's colour (3,), and the box of everything that stands out from it."""
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    mask = ndimage.gaussian_filter(np.abs(image - ground).max(axis=2), 0.6) > 0.12
    return ground, _boxes(mask)


def _boxes(mask: np.ndarray) -> list[Box]:
    """Boxes (top, bottom, left, right) of components; small satellites (sparkles, drops) join a near big one."""
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


def crop(image: np.ndarray, ground: np.ndarray, box: Box) -> np.ndarray:
    """(16, 16, 3): the square around a box, background beyond the image's edge."""
    top, bottom, left, right = box
    side = max(bottom - top, right - left)
    y, x = (top + bottom) / 2, (left + right) / 2
    grid = (np.arange(_SIDE) + 0.5) / _SIDE * side - side / 2 - 0.5
    samples = [
        ndimage.map_coordinates(
            image[..., c], np.meshgrid(y + grid, x + grid, indexing="ij"), order=1, mode="constant", cval=ground[c]
        )
        for c in range(3)
    ]
    return np.stack(samples, axis=-1)


def _name_blob(image: np.ndarray, ground: np.ndarray, box: Box) -> Blob:
    names, templates = _templates()
    drawn = templates[..., :3] + (1 - templates[..., 3:]) * ground  # (K, 16, 16, 3) on this background
    distance = np.abs(drawn - crop(image, ground, box)).mean(axis=(1, 2, 3))
    best, second = np.argsort(distance)[:2]
    quality = np.clip(1 - distance[best] / _FAR, 0, 1)
    margin = np.clip((distance[second] - distance[best]) / max(distance[second], 1e-6) * 3, 0, 1)
    top, bottom, left, right = box
    return Blob(names[best], (left + right) / 2, (top + bottom) / 2, float(quality * margin))


def verify(image: np.ndarray, facts: Facts) -> dict[str, tuple[float, float]]:
    """Score and confidence, both in [0, 1], for each kind of fact; (nan, 0) where the prompt does not state it.

    Scores give partial credit: objects is the F1 of seen against stated names, count falls by 1/2 for each object too
    many or too few, relation rises over 12 px around the threshold of `facts.check`, background is 0 or 1.
    `all_facts` is strict. Confidence is the sureness of what the score rests on.

    Raises:
        ValueError: the image is not (64, 64, 3) in [0, 1].
    """
    if image.shape != (SIZE, SIZE, 3) or image.min() < -0.01 or image.max() > 1.01:
        raise ValueError(
            f"the verifier reads one ({SIZE}, {SIZE}, 3) image in [0, 1], not shape {image.shape} "
            f"in [{image.min():.2f}, {image.max():.2f}]"
        )
    blobs, background, background_sureness = look(image)
    seen = [(b.name, b.x, b.y) for b in blobs]
    strict = check(facts, seen, background)
    stated = {o["name"]: o["count"] for o in facts["objects"]}
    sure = float(np.mean([b.sureness for b in blobs])) if blobs else 0.5
    found = {b.name for b in blobs}
    hits = len(found & set(stated))
    scores = {"objects": 2 * hits / (len(found) + len(stated))}
    off = sum(abs(sum(b.name == name for b in blobs) - count) for name, count in stated.items())
    scores["count"] = 0.5**off
    if facts["relation"] is not None:
        scores["relation"] = float(np.clip(0.5 + relation_margin(facts, seen) / 12, 0, 1))
    if facts["background"] is not None:
        scores["background"] = float(background == facts["background"])
    result = {
        kind: (scores[kind], background_sureness if kind == "background" else sure) if kind in scores else (np.nan, 0.0)
        for kind in KINDS
    }
    weakest = min([sure] + [background_sureness] * (facts["background"] is not None))
    result["all_facts"] = (float(bool(strict["all_facts"])), weakest)
    return result


def verify_batch(images: np.ndarray, facts: Sequence[Facts]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`verify` over (B, 64, 64, 3): kind -> (score (B,), confidence (B,)); score nan where a fact is not stated."""
    rows = [verify(image, f) for image, f in zip(images, facts, strict=True)]
    return {
        kind: (np.array([row[kind][0] for row in rows]), np.array([row[kind][1] for row in rows]))
        for kind in ("all_facts", *KINDS)
    }
