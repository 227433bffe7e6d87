"""Ranges, resizing against PIL, round trips through PIL and PNG."""

import numpy as np
import pytest
import torch
from PIL import Image

from genalign.media import image as media
from genalign.types import UsageError


def picture(height: int = 13, width: int = 17) -> torch.Tensor:
    levels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))
    return levels / 255


def test_ranges_are_each_others_inverse() -> None:
    x = picture()
    assert media.to_signed(x).min() < -0.9
    torch.testing.assert_close(media.to_unit(media.to_signed(x)), x)


def test_png_round_trip_is_exact(tmp_path) -> None:
    x = picture()
    media.save_png(x, tmp_path / "a" / "b.png")
    assert torch.equal(media.load_png(tmp_path / "a" / "b.png"), x)
    assert np.array_equal(
        np.array(Image.open(tmp_path / "a" / "b.png")), (x * 255).round().byte().permute(1, 2, 0).numpy()
    )


def test_levels_are_rounded_not_cut() -> None:
    assert np.array(media.to_pil(torch.full((3, 1, 1), 0.999)))[0, 0, 0] == 255
    assert np.array(media.to_pil(torch.full((3, 1, 1), 1.7)))[0, 0, 0] == 255


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert torch.equal(media.from_pil(clear), torch.ones(3, 2, 2))
    assert media.from_pil(Image.new("L", (2, 3), 51)).shape == (3, 3, 2)


@pytest.mark.parametrize(("mode", "pil"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
@pytest.mark.parametrize("size", [(7, 5), (40, 33)])
def test_resize_agrees_with_pil(mode, pil, size) -> None:
    x = 0.3 + 0.4 * picture(24, 24)  # no overshoot, which PIL would cut off between its two passes
    ours = media.resize(x, *size, mode=mode)
    theirs = media.from_pil(media.to_pil(x).resize(size[::-1], pil))
    assert ours.shape == (3, *size)
    assert (ours - theirs).abs().max() < 1.5 / 255  # PIL rounds to bytes after each pass


def test_resize_keeps_gradients_and_leading_axes() -> None:
    x = torch.rand(2, 4, 3, 8, 8, requires_grad=True)
    out = media.resize(x, 4, 6)
    out.sum().backward()
    assert out.shape == (2, 4, 3, 4, 6)
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_a_file_that_is_no_picture_is_one_sentence(tmp_path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    for name in ("x.png", "missing.png"):
        with pytest.raises(UsageError, match=name):
            media.load_png(tmp_path / name)
