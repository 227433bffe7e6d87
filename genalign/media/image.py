"""Images between the forms they come in: tensors in [0,1] or [-1,1], PIL, PNG files; videos from files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from genalign.files.atomic import replace_file
from genalign.files.untrusted import neighbour
from genalign.types import GenalignError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

ResizeMode = Literal["bilinear", "bicubic", "nearest"]
PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow hands EPS to Ghostscript, which is a program


def to_signed(x: Tensor) -> Tensor:
    """[0,1] -> [-1,1], the range autoencoders and most networks read."""
    return 2 * x - 1


def to_unit(x: Tensor) -> Tensor:
    """[-1,1] -> [0,1], without clamping, so that gradients survive."""
    return (x + 1) / 2


def resize(
    images: Tensor, height: int, width: int, mode: Literal["bilinear", "bicubic", "nearest"] = "bicubic"
) -> Tensor:
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
    """(3,H,W) in [0,1] -> RGB image, rounded to the nearest of 256 levels."""
    import PIL.Image

    levels = image.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return PIL.Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy(), "RGB")


def from_pil(image: Image) -> Tensor:
    """Any PIL image -> (3,H,W) fp32 in [0,1]; transparency is laid on white."""
    import numpy as np
    import PIL.Image

    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div(255).contiguous()


def save_png(image: Tensor, path: Path | str) -> None:
    """Write (3,H,W) in [0,1]; folders on the way are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    to_pil(image).save(file, format="PNG")
    try:
        replace_file(Path(path), file.getvalue())
    except OSError as error:
        raise GenalignError(f"cannot write {path}: {error.strerror}; free space or check its permissions") from error


def load_png(path: Path | str) -> Tensor:
    """Read a picture file (of PICTURES, whatever it is called) as (3,H,W) fp32 in [0,1].

    Raises UsageError where the file is missing or no picture.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=PICTURES) as image:
            return from_pil(image)
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as a picture: {error}") from error


def cell_picture(value: Any, root: Path, where: str) -> Tensor:
    """What a table's row holds as a picture: a file below `root`, its bytes, a PIL image, or a datasets row of these,
    as (3,H,W) fp32 in [0,1].

    Raises UsageError, which begins with `where`, if it is none of them, or a path that is not below `root`.
    """
    import PIL.Image

    if isinstance(value, Mapping):  # datasets, undecoded
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return load_png(neighbour(root, value, where))
    try:
        return from_pil(PIL.Image.open(io.BytesIO(value), formats=PICTURES) if isinstance(value, bytes) else value)
    except (OSError, AttributeError, PIL.Image.DecompressionBombError) as error:
        raise UsageError(f"{where} ({error}); drop that row") from error
