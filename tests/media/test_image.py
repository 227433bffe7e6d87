"""Resizing and round trips against PIL; pictures of every mode and orientation, against numbers from PIL and numpy."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from genalign.media import image as media
from genalign.types import UsageError


def picture(height: int = 13, width: int = 17) -> torch.Tensor:
    levels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))
    return levels / 255


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


# ---- files of others: modes, orientations, animations --------------------------------------------------------------

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
DEEP = np.array([[0, 1, 255, 256], [32768, 40000, 65534, 65535]], dtype=np.uint16)
COLOURS = Image.fromarray(RGB, "RGB")


def unit(pixels: np.ndarray) -> torch.Tensor:
    """(H,W,3) of 8 bits -> (3,H,W)."""
    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1) / 255)


def test_eight_bits_are_divided_by_255_and_nothing_else() -> None:
    assert torch.equal(media.from_pil(COLOURS), unit(RGB))
    alpha = np.random.default_rng(1).integers(0, 256, (6, 9, 1), dtype=np.uint8)
    found = media.from_pil(Image.fromarray(np.concatenate([RGB, alpha], 2), "RGBA"))
    share = alpha / 255.0
    assert (found - unit(RGB * share + 255 * (1 - share))).abs().max() < 1 / 255  # Pillow rounds to bytes


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_of_gray_are_divided_by_65535(tmp_path, suffix: str) -> None:
    Image.fromarray(DEEP).save(tmp_path / f"deep.{suffix}")
    found = media.load_png(tmp_path / f"deep.{suffix}")
    assert found.shape == (3, 2, 4)
    for channel in found:
        np.testing.assert_allclose(channel.numpy(), DEEP / 65535, rtol=1e-6)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_every_integer_mode_has_the_same_white(mode: str) -> None:
    kind = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (4, 2), DEEP.astype(kind).tobytes())
    np.testing.assert_allclose(media.from_pil(image)[0].numpy(), DEEP / 65535, rtol=1e-6)


def test_a_deep_gray_that_is_marked_clear_is_white(tmp_path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "clear.png", transparency=32768)
    found = media.load_png(tmp_path / "clear.png")[0]
    assert float(found[1, 0]) == 1.0
    assert float(found[0, 2]) == pytest.approx(255 / 65535)


def test_floats_are_taken_as_they_are_or_refused() -> None:
    values = np.array([[0.0, 0.25], [0.5, 1.0]], dtype=np.float32)
    assert torch.equal(media.from_pil(Image.fromarray(values))[1], torch.from_numpy(values))
    for wrong in (values * 255, values - 0.5, values * np.nan):
        with pytest.raises(UsageError, match=r"floating-point pixels must keep them in \[0,1\]"):
            media.from_pil(Image.fromarray(wrong))
    with pytest.raises(UsageError, match=r"integer pixels must keep them in \[0,65535\], not \[0,70000\]"):
        media.from_pil(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))
    with pytest.raises(UsageError, match=r"row 3 .*floating-point"):
        media.cell_picture(Image.fromarray(values * 9), None, "row 3 is no picture")


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_are_what_pillow_converts_them_to(mode: str) -> None:
    image = COLOURS.convert(mode)
    assert torch.equal(media.from_pil(image), unit(np.array(image.convert("RGB"))))


def test_lab_is_converted_by_its_profile() -> None:
    """Lightness 53.2, a 80, b 67 is pure red of sRGB (CIE; D50 moves it by less than 3 levels)."""
    red, profiles = Image.new("RGB", (2, 2), (255, 0, 0)), [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.profileToProfile(red, *profiles, outputMode="LAB")
    found = media.from_pil(lab)
    assert found[0].min() > 0.98
    assert found[1:].max() < 0.03


def test_premultiplied_modes_are_laid_on_white_too() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert torch.equal(media.from_pil(clear.convert("RGBa")), torch.ones(3, 2, 2))
    half = Image.new("LA", (1, 1), (0, 51))
    assert media.from_pil(half.convert("La")).flatten().tolist() == pytest.approx([204 / 255] * 3, abs=1.01 / 255)


# What each EXIF orientation does to the stored array to stand it upright (EXIF 2.32, table of Orientation).
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_pictures_stand_as_their_exif_says(tmp_path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    COLOURS.save(tmp_path / f"x.{suffix}", exif=exif, **options)
    assert torch.equal(media.load_png(tmp_path / f"x.{suffix}"), unit(TURNS[orientation](RGB)))
    assert torch.equal(
        media.cell_picture((tmp_path / f"x.{suffix}").read_bytes(), tmp_path, "x"),
        media.load_png(tmp_path / f"x.{suffix}"),
    )


def test_a_deep_picture_is_turned_too(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(DEEP).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_allclose(media.load_png(tmp_path / "x.png")[2].numpy(), np.rot90(DEEP, -1) / 65535, rtol=1e-6)


def test_exif_that_cannot_be_read_turns_nothing(tmp_path) -> None:
    COLOURS.save(tmp_path / "x.png", exif=b"Exif\x00\x00this is none")
    assert torch.equal(media.load_png(tmp_path / "x.png"), unit(RGB))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(suffix: str, tmp_path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert media.load_png(tmp_path / f"x.{suffix}").mean((1, 2)).tolist() == [1.0, 0.0, 0.0]


def test_a_damaged_picture_is_one_sentence(tmp_path) -> None:
    whole = io.BytesIO()
    COLOURS.resize((90, 60)).save(whole, format="PNG")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[:200])
    with pytest.raises(UsageError, match=r"half.png cannot be read as a picture"):
        media.load_png(tmp_path / "half.png")
