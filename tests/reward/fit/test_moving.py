"""How clips change: known motion comes back from its features; the fit against numpy's least squares."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from genalign.reward.fit.moving import (
    AFFINE,
    DARK,
    FEATURES,
    LOOK,
    PARTS,
    PLACE,
    SIDE,
    STEPS,
    _least_squares,
    clip_features,
    read_frames,
)  # fmt: skip
from genalign.types import UsageError

OF_STEP = AFFINE + 2 * PARTS + PLACE


def warped(shift: tuple[float, float] = (0, 0), growth: float = 0.0, turn: float = 0.0, frames: int = 9) -> Tensor:
    """A smooth texture (F,3,SIDE,SIDE) that moves by `shift` pixels a frame, grows and turns about the middle, drawn
    from its formula at each frame's own coordinates."""
    half = (SIDE - 1) / 2
    y, x = torch.meshgrid(torch.arange(SIDE) - half, torch.arange(SIDE) - half, indexing="ij")
    drawn = []
    for frame in range(frames):
        scale, angle = math.exp(-growth * frame), -turn * frame
        u, v = x - shift[0] * frame, y - shift[1] * frame
        u, v = scale * (math.cos(angle) * u - math.sin(angle) * v), scale * (math.sin(angle) * u + math.cos(angle) * v)
        waves = (torch.sin(0.35 * u + 0.2 * v), torch.cos(0.25 * v - 0.15 * u), torch.sin(0.3 * u) * torch.cos(v / 4))
        drawn.append(0.5 + 0.4 * torch.stack(waves))
    return torch.stack(drawn)


def steps_of(clip: Tensor) -> Tensor:
    """(STEPS, OF_STEP)."""
    found = clip_features(clip[read_frames(len(clip))], len(clip))
    assert found.shape == (FEATURES,)
    return found[: STEPS * OF_STEP].view(STEPS, OF_STEP)


@pytest.mark.parametrize("shift", [(0.6, 0.0), (-0.4, 0.3), (0.0, -0.7)])
def test_a_shift_is_found_in_pixels_as_a_whole_and_in_every_quarter(shift: tuple[float, float]) -> None:
    steps = steps_of(warped(shift))
    for column, wanted in ((0, shift[0]), (3, shift[1])):
        assert torch.allclose(steps[:, column], torch.tensor(wanted), atol=0.05)
    quarters = steps[:, AFFINE : AFFINE + 2 * PARTS].view(STEPS, PARTS, 2)
    assert (quarters - torch.tensor(shift)).abs().max() < 0.1
    assert steps[:, [1, 2, 4, 5]].abs().max() < 0.1  # neither growth nor turn


def test_growth_and_turns_have_coefficients_of_their_own() -> None:
    """Across a picture whose coordinates run from -1 to 1, growth g moves its edge by g times half its side."""
    half = (SIDE - 1) / 2
    growing = steps_of(warped(growth=0.03)).mean(0)
    assert growing[1].item() == pytest.approx(0.03 * half, rel=0.2)
    assert growing[5].item() == pytest.approx(0.03 * half, rel=0.2)
    clockwise = steps_of(warped(turn=0.03)).mean(0)
    assert clockwise[2].item() == pytest.approx(-0.03 * half, rel=0.2)
    assert clockwise[4].item() == pytest.approx(0.03 * half, rel=0.2)
    assert torch.allclose(steps_of(warped(turn=-0.03)).mean(0)[[2, 4]], -clockwise[[2, 4]], atol=0.05)


def test_order_counts_and_a_still_clip_has_no_energy() -> None:
    clip = warped((0.5, 0.0))
    forwards, backwards = steps_of(clip), steps_of(clip.flip(0))
    assert torch.allclose(forwards[:, 0], -backwards[:, 0], atol=0.02)
    energy = AFFINE + 2 * PARTS + 3
    still = steps_of(clip[:1].repeat(9, 1, 1, 1))
    assert torch.allclose(still[:, energy], torch.tensor(math.log(DARK)))
    assert still[:, :AFFINE].abs().max() == 0
    assert (forwards[:, energy] > still[:, energy] + 3).all()


def test_where_a_clip_changes() -> None:
    """A light that blinks in one place."""
    clip = torch.full((9, 3, SIDE, SIDE), 0.2)
    clip[1::2, :, 4:8, 20:24] = 0.9
    place = steps_of(clip)[:, AFFINE + 2 * PARTS :]
    middle = [(21.5 - (SIDE - 1) / 2) / (SIDE / 2 - 1.5), (5.5 - (SIDE - 1) / 2) / (SIDE / 2 - 1.5)]
    assert (place[:, :2] - torch.tensor(middle)).abs().max() < 0.05


def test_colour_contrast_edges_and_grain_of_a_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    clip = 0.2 + 0.6 * torch.rand(9, 3, 20, 24, generator=generator)
    look = clip_features(clip, 9)[STEPS * OF_STEP :].view(STEPS + 1, LOOK)
    for frame, row in zip(clip.double().numpy(), look, strict=True):
        edges = np.abs(np.diff(frame, axis=2)).mean() + np.abs(np.diff(frame, axis=1)).mean()
        inner = frame[:, 1:-1, 1:-1]
        grain = 4 * inner - frame[:, :-2, 1:-1] - frame[:, 2:, 1:-1] - frame[:, 1:-1, :-2] - frame[:, 1:-1, 2:]
        wanted = [*frame.mean((1, 2)), frame.std(ddof=1), np.log(edges + DARK), np.log(np.abs(grain).mean() + DARK)]
        np.testing.assert_allclose(row.numpy(), wanted, atol=1e-5)


def test_the_fit_is_numpys() -> None:
    generator = torch.Generator().manual_seed(1)
    design = torch.randn(2, 3, 6, 5, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    found, rest = _least_squares(design, target)
    for row in range(2):
        rows, wanted = design[row].reshape(-1, 4).numpy(), target[row].reshape(-1).numpy()
        best = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        np.testing.assert_allclose(found[row].numpy(), best, atol=1e-5)
        assert rest[row].item() == pytest.approx(np.square(rows @ best - wanted).mean(), abs=1e-6)


def test_frames_that_are_read_and_gradients() -> None:
    assert read_frames(9) == list(range(9))
    assert read_frames(2) == [0, 1]
    many = read_frames(81)
    assert (many[0], many[-1]) == (0, 80)
    assert len(many) <= 25
    clip = torch.rand(81, 3, 40, 64, requires_grad=True)
    clip_features(clip[many], 81).sum().backward()
    assert clip.grad is not None
    assert sorted(clip.grad.abs().sum((1, 2, 3)).nonzero()[:, 0].tolist()) == many
    with pytest.raises(UsageError, match="2 are the least"):
        read_frames(1)
