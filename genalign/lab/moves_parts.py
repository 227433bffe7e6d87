"""What stands out from one frame's background, and which sprite at which angle each of it is: no network.

Place and size are moments of what stands out (to a tenth of a pixel); pictures are compared in coordinates that these
moments define, so that one template a sprite and angle fits wherever and however large it is drawn.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy import ndimage

from genalign.lab.moves_clips import stamp
from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS

ANGLES = 24  # templates of a sprite, 15 degrees apart
_SAMPLES = 16  # across a compared picture
_REACH = 2.2  # radii from its middle to its edge
_STANDS_OUT = 0.1  # colour distance from the ground that makes a pixel foreground
_NOISES = 2.8  # standard deviations of the ground's noise that make one too
_COUNTS = 0.06  # colour distance below which a pixel has no weight
_NEAR = 5  # pixels between parts that may be one thing
_SMALLEST = 12  # pixels of foreground below which a part is dirt
_DRAWN = 18.0  # pixels of the templates' size
_CANVAS = 30


@dataclass(frozen=True)
class Part:
    """One thing: centre of what stands out and its root mean square radius in pixels, its foreground (H, W), the
    compared picture of colour differences from the ground (3 * 16 * 16,), and how far that is from each of the
    templates (K, A): 0 is the same, about 2 nothing in common."""

    x: float
    y: float
    radius: float
    mask: np.ndarray
    picture: np.ndarray
    unlike: np.ndarray


@dataclass(frozen=True)
class Templates:
    """Of each sprite (K) at each angle (A): its picture (K, A, 768) and the sum of its squares (K, A), its radius
    (K, A), and how far its centre lies from the centre of what stands out, x and y (K, A, 2), in pixels at `_DRAWN`."""

    names: list[str]
    pictures: np.ndarray
    squares: np.ndarray
    radii: np.ndarray
    offsets: np.ndarray

    def distances(self, picture: np.ndarray) -> np.ndarray:
        """(K, A): squared differences over the mean square of both."""
        both = self.squares + float(picture @ picture)
        return np.asarray(2 * (both - 2 * (self.pictures @ picture)) / both)


def ground_of(image: np.ndarray) -> np.ndarray:
    """The background's colour (3,) of an (H, W, 3) image: the median of its border."""
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3)])
    sides = np.concatenate([image[2:-2, :2].reshape(-1, 3), image[2:-2, -2:].reshape(-1, 3)])
    return np.asarray(np.median(np.concatenate([border, sides]), axis=0), np.float32)


def nearest_ground(ground: np.ndarray) -> tuple[str, float]:
    """The background's name, and how sure it is, in [0, 1]."""
    palette = np.asarray(list(BACKGROUNDS.values()), dtype=np.float32) / 255
    distance = np.abs(palette - ground).mean(axis=1)
    nearest, second = np.argsort(distance)[:2]
    sureness = np.clip(1 - distance[nearest] / max(distance[second], 1e-6), 0, 1) * (distance[nearest] < 0.1)
    return list(BACKGROUNDS)[nearest], float(sureness)


def parts_of(image: np.ndarray, ground: np.ndarray, template: Templates) -> list[Part]:
    """The things in an (H, W, 3) image, largest first. Sparkles, drops and the like belong to a near larger thing, and
    near parts are one thing where together they look more like a sprite than each alone (a cherry without its stem)."""
    difference = image - ground
    strength = np.abs(difference).max(axis=2)
    stands_out = max(_STANDS_OUT, _NOISES * 1.48 * float(np.median(np.abs(difference))))  # most pixels are background
    foreground = ndimage.gaussian_filter(strength, 0.5) > stands_out
    masks = _masks(foreground)
    parts = [_part(difference, strength, _edged(mask, masks), template) for mask in masks]
    for k, j in combinations(range(len(parts)), 2):
        if _gap(masks[k], masks[j]) <= _NEAR:
            both = _part(difference, strength, parts[k].mask | parts[j].mask, template)
            if both.unlike.min() < min(parts[k].unlike.min(), parts[j].unlike.min()):
                return [both, *(part for i, part in enumerate(parts) if i not in (k, j))]
    return parts


def _masks(foreground: np.ndarray) -> list[np.ndarray]:
    """Connected components (H, W), largest first, small ones joined to a near large one."""
    labels, count = ndimage.label(foreground, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    masks: list[np.ndarray] = []
    for label in np.argsort(-areas):
        mask = labels == label + 1
        host = next((k for k, big in enumerate(masks) if areas[label] < 0.3 * big.sum() and _gap(big, mask) <= 2), None)
        if host is not None:
            masks[host] = masks[host] | mask
        elif areas[label] >= _SMALLEST:
            masks.append(mask)
    return masks


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Pixels between two masks."""
    return float(ndimage.distance_transform_cdt(~a, "chessboard")[b].min()) - 1


def _edged(mask: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """A mask and its soft edge, but no pixel of another."""
    wide = ndimage.binary_dilation(mask, np.ones((3, 3)))
    for other in masks:
        wide &= mask | ~other
    return np.asarray(wide)


def _part(difference: np.ndarray, strength: np.ndarray, mask: np.ndarray, template: Templates) -> Part:
    (x, y, radius), picture = _seen(difference, strength, mask)
    return Part(x, y, radius, mask, picture, template.distances(picture))


def _seen(
    difference: np.ndarray, strength: np.ndarray, mask: np.ndarray
) -> tuple[tuple[float, float, float], np.ndarray]:
    """Centre x, y and radius, and the compared picture (768,), from colour differences (H, W, 3) and their strength
    (H, W) within a mask."""
    weights = np.where(mask & (strength > _COUNTS), strength, 0.0)
    total = weights.sum()
    rows, columns = np.indices(weights.shape) + 0.5
    x, y = (weights * columns).sum() / total, (weights * rows).sum() / total
    radius = np.sqrt((weights * ((columns - x) ** 2 + (rows - y) ** 2)).sum() / total)
    spacing = 2 * _REACH * radius / _SAMPLES
    grid = (np.arange(_SAMPLES) - (_SAMPLES - 1) / 2) * spacing
    where = np.meshgrid(y + grid - 0.5, x + grid - 0.5, indexing="ij")
    soft = ndimage.gaussian_filter(difference * mask[..., None], (0.5 * spacing, 0.5 * spacing, 0))
    planes = [ndimage.map_coordinates(soft[..., colour], where, order=1) for colour in range(3)]  # 0 outside
    return (float(x), float(y), float(radius)), np.stack(planes).ravel().astype(np.float32)


@lru_cache(maxsize=len(BACKGROUNDS))
def templates(background: str) -> Templates:
    """The sprites as they stand out from this background."""
    ground = np.asarray(BACKGROUNDS[background], np.float32) / 255
    everywhere = np.ones((_CANVAS, _CANVAS), bool)
    pictures, radii, offsets = [], [], []
    for drawn in _drawn():  # (30, 30, 4)
        difference = drawn[..., :3] - drawn[..., 3:] * ground
        (x, y, radius), picture = _seen(difference, np.abs(difference).max(axis=2), everywhere)
        pictures.append(picture)
        radii.append(radius)
        offsets.append((_CANVAS / 2 - x, _CANVAS / 2 - y))
    shape = (len(sprites()), ANGLES, -1)
    whole = np.asarray(pictures).reshape(shape)
    squares = (whole**2).sum(axis=2)
    return Templates(list(sprites()), whole, squares, np.reshape(radii, shape[:2]), np.asarray(offsets).reshape(shape))


@lru_cache(maxsize=1)
def _drawn() -> list[np.ndarray]:
    middle, turns = _CANVAS / 2, [360 / ANGLES * k for k in range(ANGLES)]
    return [stamp(name, _DRAWN, turn, middle, middle, _CANVAS) for name in sprites() for turn in turns]


def sprite_state(part: Part, template: Templates, name: int, angle: int) -> tuple[float, float, float]:
    """Centre x, y and size in pixels of a sprite that is seen as `part`."""
    scale = part.radius / template.radii[name, angle]
    dx, dy = template.offsets[name, angle] * scale
    return part.x + dx, part.y + dy, _DRAWN * scale


def presence(part: Part, template: Templates, name: int, angle: int) -> float:
    """How much of the sprite's colour is there: 1 whole, 0.5 half transparent, 0 nothing of it (least squares)."""
    drawn = template.pictures[name, angle]
    return float(part.picture @ drawn / (drawn @ drawn))


def tint(part: Part, template: Templates, name: int, angle: int) -> np.ndarray:
    """(3,): by how much its mean colour differs from the sprite's, where the sprite is."""
    drawn = template.pictures[name, angle].reshape(3, -1)
    there = np.abs(drawn).max(axis=0) > _STANDS_OUT
    return np.asarray((part.picture.reshape(3, -1) - drawn)[:, there].mean(axis=1))
