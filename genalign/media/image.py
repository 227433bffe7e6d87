"""Images between the forms they come in: tensors in [0,1], PIL, files; a medium (see medium.py)."""

from __future__ import annotations

import base64
import html
import io
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from genalign.files.atomic import replace_file
from genalign.files.untrusted import neighbour
from genalign.media.medium import Budget, Sounds
from genalign.types import GenalignError, UsageError
from genalign.types.samples import as_floats, to_levels

if TYPE_CHECKING:
    from PIL.Image import Image

NOUN = "picture"
SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
RANGE: tuple[float, float] | None = (-0.01, 1.01)
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow hands EPS to Ghostscript, which is a program
WIRE = ("PNG", "JPEG", "WEBP")  # formats that a request may carry
ResizeMode = Literal["bilinear", "bicubic", "nearest"]


def resize(images: Tensor, height: int, width: int, mode: ResizeMode = "bicubic") -> Tensor:
    """(..., C, H, W) in [0,1] to (..., C, height, width) in [0,1]; differentiable, antialiased as PIL does it."""
    if images.shape[-2:] == (height, width):
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    smooth = mode != "nearest"
    resized = functional.interpolate(
        flat, (height, width), mode=mode, antialias=smooth, align_corners=False if smooth else None
    )
    return resized.clamp(0, 1).reshape(*images.shape[:-2], height, width)


def to_pil(image: Tensor) -> Image:
    """(3,H,W) in [0,1] -> RGB image, rounded to the nearest of 256 levels; or of levels uint8."""
    import PIL.Image

    levels = to_levels(image)
    return PIL.Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy(), "RGB")


def from_pil(image: Image) -> Tensor:
    """A PIL image of any mode -> (3,H,W) fp32 in [0,1].

    It is turned upright as its EXIF orientation says; transparency is laid on white; integers of 16 bits are divided by
    65535; other modes become RGB as Pillow converts them. Of an animation the frame that is open is taken: the first.

    Raises:
        UsageError: pixels whose white is not known, i.e. floats outside [0,1] or integers beyond 16 bits.
    """
    import numpy as np
    import PIL.Image

    image = _upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_gray(image)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div(255).contiguous()


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, struct.error, KeyError, TypeError, ValueError):  # EXIF that nobody can read turns nothing
        return image


def _deep_gray(image: Image) -> Tensor:
    """Gray of more than 8 bits, (3,H,W) in [0,1]: mode F as it is, modes I;16 and I (16-bit PNG, PGM) by 65535."""
    import numpy as np

    pixels = np.array(image).astype(np.float64)  # (H, W)
    least, most = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (least >= 0 and most <= white):  # also NaN
        kind, range_ = ("floating-point", "[0,1]") if image.mode == "F" else ("integer", "[0,65535]")
        raise UsageError(
            f"a picture of {kind} pixels must keep them in {range_}, not [{least:g},{most:g}]; convert it to 8 bits"
        )
    key = image.info.get("transparency")
    if isinstance(key, int):  # this gray level is clear
        pixels = np.where(pixels == key, white, pixels)
    return torch.from_numpy(pixels / white).float().expand(3, -1, -1).contiguous()


def save_png(image: Tensor, path: Path | str) -> None:
    """Write (3,H,W) in [0,1] as a whole or not at all; folders on the way are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        replace_file(Path(path), _encoded(image, "PNG"))
    except OSError as error:
        raise GenalignError(f"cannot write {path}: {error.strerror}; free space or check its permissions") from error


def load_png(path: Path | str) -> Tensor:
    """Read a picture file (of PICTURES, whatever it is called) as (3,H,W) fp32 in [0,1], as `from_pil` does.

    Raises:
        UsageError: the file is missing or not a picture, or its pixels have no known white.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=PICTURES) as image:
            return from_pil(image)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError, UsageError) as error:
        raise UsageError(f"{path} cannot be read as a picture: {error}") from error


def cell_picture(value: Any, root: Path, where: str) -> Tensor:
    """What a table's row holds as a picture: a file below `root`, its bytes, a PIL image, or a datasets row of these,
    as (3,H,W) fp32 in [0,1].

    Raises:
        UsageError: none of them, or a path that is not below `root`; the sentence begins with `where`, or names the
            file.
    """
    import PIL.Image

    if isinstance(value, Mapping):  # datasets, undecoded
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return load_png(neighbour(root, value, where))
    try:
        return from_pil(PIL.Image.open(io.BytesIO(value), formats=PICTURES) if isinstance(value, bytes) else value)
    except (OSError, SyntaxError, ValueError, AttributeError, PIL.Image.DecompressionBombError, UsageError) as error:
        raise UsageError(f"{where} ({error}); drop that row") from error


def _encoded(image: Tensor, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    to_pil(image).save(file, format=format_, **options)
    return file.getvalue()


# ---- the medium -----------------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[Tensor, None]:
    return load_png(path), None


def cell(value: Any, root: Path, where: str) -> tuple[Tensor, None]:
    return cell_picture(value, root, where), None


def write(row: Tensor, rate: float | None, path: Path, sound: Any = None) -> Path:
    path = path if path.suffix == ".png" else path.with_name(f"{path.name}.png")
    save_png(row, path)
    return path


def sheet(
    base: Sequence[Tensor],
    tuned: Sequence[Tensor],
    drawn: Sequence[tuple[str, int]],
    path: Path,
    rate: float | None,
    sounds: Sounds | None = None,
) -> Path:
    from genalign.media.grid import grid, save

    captions = [prompt for prompt, _ in drawn]
    save(grid([to_pil(row) for row in base], [to_pil(row) for row in tuned], captions), path)
    return path


def symptoms(rows: Sequence[Tensor]) -> dict[str, float]:
    """`saturation`: mean of the largest less the smallest colour. `jpeg_kib`: size as JPEG, a measure of detail."""
    images = [as_floats(image.detach()).float().cpu() for image in rows]
    count = max(len(images), 1)
    return {
        "saturation": sum(float((image.amax(0) - image.amin(0)).mean()) for image in images) / count,
        "jpeg_kib": sum(len(_encoded(image, "JPEG", quality=95)) / 1024 for image in images) / count,
    }


def distance(first: Tensor, second: Tensor) -> float:
    first, second = (as_floats(row.detach()).float().cpu() for row in (first, second))
    return float((first - second).square().mean().sqrt())


def extent(row: Tensor, rate: float | None) -> float:
    return float(len(_encoded(row, "PNG")))


def decode(given: Any, rate: float | None, budget: Budget) -> tuple[Tensor, None]:
    import PIL.Image

    with PIL.Image.open(io.BytesIO(base64.b64decode(given, validate=True)), formats=WIRE) as image:
        budget.take(image.width * image.height)  # known from the header, before a pixel is decoded
        return from_pil(image), None


def element(folder: Path, shown: str, label: str) -> str:
    data, kind = base64.b64encode((folder / shown).read_bytes()).decode(), Path(shown).suffix[1:] or "png"
    return f'<img alt="{html.escape(label)}" src="data:image/{kind};base64,{data}">'
