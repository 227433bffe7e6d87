"""How a clip changes over time, as features that need no weights: motion by least squares, light, colour and grain."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.media.image import resize
from genalign.types import UsageError

STEPS = 8  # moments of a clip, each a frame and the one after it
SIDE = 32  # pixels, high and wide, at which motion is looked at
RIDGE = 1e-6  # per pixel: what a picture without any edge is divided by
DARK = 1e-4  # added before a logarithm
AFFINE, PARTS, PLACE, LOOK = 6, 4, 5, 6  # features: of a step's motion as a whole, in its quarters, where; of a frame
FEATURES = STEPS * (AFFINE + 2 * PARTS + PLACE) + (STEPS + 1) * LOOK


def read_frames(frames: int) -> list[int]:
    """Which of a clip's frames are read, in order: those of `clip_features`, 9 of a clip of 9, 25 at most.

    Raises:
        UsageError: fewer than two, which show no motion.
    """
    steps, looks = _moments(frames)
    return sorted({*steps, *(step + 1 for step in steps), *looks})


def _moments(frames: int) -> tuple[list[int], list[int]]:
    """Where the STEPS steps begin, and the STEPS + 1 frames that are looked at, both evenly spaced."""
    if frames < 2:
        raise UsageError(f"a video of {frames} frames shows no motion; 2 are the least")
    steps, looks = torch.linspace(0, frames - 2, STEPS).round(), torch.linspace(0, frames - 1, STEPS + 1).round()
    return steps.int().tolist(), looks.int().tolist()


def clip_features(frames: Tensor, total: int) -> Tensor:
    """(FEATURES,) of the frames (N,3,H,W) in [0,1] that `read_frames(total)` chose; differentiable, and in order of
    time, so that a clip played backwards has others.

    Of each step the affine motion that explains the change best by least squares over the picture (Lucas and Kanade,
    1981; Bergen et al., 1992: shift, growth, turn and shear), the shift in each quarter, and where, how widely and how
    much the picture changes, and how much of that no motion explains. Of each frame its mean colour, contrast, edges
    and grain.
    """
    place = {frame: at for at, frame in enumerate(read_frames(total))}
    steps, looks = _moments(total)
    small = resize(frames, SIDE, SIDE)
    first, then = ([place[step + later] for step in steps] for later in (0, 1))
    shown = frames[[place[look] for look in looks]]
    return torch.cat([_motion(small[first], small[then]).flatten(), _look(shown).flatten()])


def _motion(first: Tensor, then: Tensor) -> Tensor:
    """(T,3,h,w) twice -> (T, AFFINE + 2 PARTS + PLACE). Coordinates run from -1 to 1, shifts are in pixels of SIDE."""
    first, then = _blurred(first), _blurred(then)
    middle, change = (first + then) / 2, (then - first)[..., 1:-1, 1:-1]
    across = (middle[..., 1:-1, 2:] - middle[..., 1:-1, :-2]) / 2
    down = (middle[..., 2:, 1:-1] - middle[..., :-2, 1:-1]) / 2
    cells = torch.linspace(-1, 1, change.shape[-1], dtype=change.dtype, device=change.device)
    y, x = torch.meshgrid(cells, cells, indexing="ij")
    whole = torch.stack([across, across * x, across * y, down, down * x, down * y], -1)  # (T,3,h,w,6)
    affine, rest = _least_squares(whole, -change)
    shifts = []
    for quarter in ((x < 0) & (y < 0), (x >= 0) & (y < 0), (x < 0) & (y >= 0), (x >= 0) & (y >= 0)):
        inside = quarter.to(change)
        shifts.append(_least_squares(torch.stack([across, down], -1) * inside[..., None], -change * inside)[0])
    size = change.abs().mean(1)  # (T,h,w)
    total = size.sum((1, 2)) + DARK
    at_x, at_y = (size * x).sum((1, 2)) / total, (size * y).sum((1, 2)) / total
    wide = ((size * (x * x + y * y)).sum((1, 2)) / total - at_x**2 - at_y**2).clamp(min=DARK).sqrt()
    energy = (size.mean((1, 2)) + DARK).log()
    where = torch.stack([at_x, at_y, wide, energy, (rest + DARK**2).log()], 1)
    return torch.cat([affine, *shifts, where], 1)


def _least_squares(design: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(T,3,h,w,P) and (T,3,h,w) -> the coefficients (T,P) of the best fit, and its mean squared error (T,)."""
    rows, wanted = design.flatten(1, 3), target.flatten(1)[..., None]
    normal = rows.mT @ rows + RIDGE * rows.shape[1] * torch.eye(rows.shape[2], dtype=rows.dtype, device=rows.device)
    found = torch.linalg.solve(normal, rows.mT @ wanted)
    return found[..., 0], (rows @ found - wanted).square().mean((1, 2))


def _blurred(frames: Tensor) -> Tensor:
    """(T,3,h,w) by binomials of 5 pixels twice: a shift of some pixels must stay small beside what is shifted."""
    weights = frames.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    colours = frames.shape[1]
    for kernel in (weights[:, None], weights[None]) * 2:
        sides = (kernel.shape[1] // 2,) * 2 + (kernel.shape[0] // 2,) * 2
        frames = F.conv2d(F.pad(frames, sides, mode="replicate"), kernel.expand(colours, 1, -1, -1), groups=colours)
    return frames


def _look(frames: Tensor) -> Tensor:
    """(T,3,H,W) -> (T, LOOK): mean red, green and blue, contrast, and the logarithms of edges and grain."""
    right, below = (frames[..., 1:] - frames[..., :-1]).abs(), (frames[..., 1:, :] - frames[..., :-1, :]).abs()
    inner = frames[..., 1:-1, 1:-1]
    around = frames[..., :-2, 1:-1] + frames[..., 2:, 1:-1] + frames[..., 1:-1, :-2] + frames[..., 1:-1, 2:]
    edges = right.mean((1, 2, 3)) + below.mean((1, 2, 3))
    grain = (4 * inner - around).abs().mean((1, 2, 3))
    contrast = frames.flatten(1).std(1)
    sizes = torch.stack([contrast, (edges + DARK).log(), (grain + DARK).log()], 1)
    return torch.cat([frames.mean((2, 3)), sizes], 1)
