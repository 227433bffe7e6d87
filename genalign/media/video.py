"""Videos as a medium (see medium.py); their files are read and written by container.py."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genalign.files.atomic import replace_file
from genalign.files.untrusted import neighbour
from genalign.media import image
from genalign.media.container import decoded, load_video
from genalign.media.film import write_video
from genalign.media.frames import chunked, measure
from genalign.media.medium import Budget, Sounds
from genalign.types import UsageError
from genalign.types.samples import to_levels

if TYPE_CHECKING:
    from PIL.Image import Image

NOUN = "clip"
SUFFIXES: tuple[str, ...] = (".mp4", ".webm", ".mov", ".mkv", ".gif")
RANGE: tuple[float, float] | None = (-0.01, 1.01)
BLACK = 0.02  # mean below which a frame counts as black
STRIP, STRIP_HEIGHT = 4, 96  # frames of a video in a sheet, and their greatest height in px
MOVING, MOVING_BYTES = 24, 2 << 20  # frames of a sheet that moves, and how large its file may be
FRAME_LIST_RATE = 8.0  # of a clip that is a list of pictures, as VideoFeedback has them


def read(path: Path) -> tuple[Tensor, float]:
    return load_video(path, None)


def cell(value: Any, root: Path, where: str) -> tuple[Tensor, float]:
    """A file's name, its bytes, an undecoded row of datasets, or a list of pictures (FRAME_LIST_RATE a second); all its
    frames, of which each scorer takes its own."""
    if isinstance(value, list | tuple):
        return _of_pictures(value, root, where), FRAME_LIST_RATE
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return decoded(io.BytesIO(value), where, None)
    return load_video(neighbour(root, str(value), where), None)


def _of_pictures(values: Sequence[Any], root: Path, where: str) -> Tensor:
    frames = [to_levels(image.cell_picture(value, root, where)) for value in values]
    if not frames or len({frame.shape for frame in frames}) > 1:
        raise UsageError(f"{where}: its list of frames is empty, or they differ in size; drop that row")
    return torch.stack(frames)


def write(row: Tensor, rate: float | None, path: Path, sound: tuple[Tensor, float | None] | None = None) -> Path:
    return write_video(row, rate, path, sound)


def sheet(
    base: Sequence[Tensor],
    tuned: Sequence[Tensor],
    drawn: Sequence[tuple[str, int]],
    path: Path,
    rate: float | None,
    sounds: Sounds | None = None,
) -> Path:
    """Some frames of each in a strip, time from left to right, base beside tuned. Where the rate is known, the videos
    themselves stand beside the picture, and the same picture with moving frames as .webp."""
    from genalign.media.grid import grid, save, write_pairs

    captions = [prompt for prompt, _ in drawn]
    shown = [[_strip(row) for row in rows] for rows in (base, tuned)]
    save(grid(shown[0], shown[1], captions, columns=1), path)
    if rate:
        write_pairs("video", lambda row, stem, sound: write(row, rate, stem, sound), base, tuned, drawn, path, sounds)
        _save_moving(base, tuned, captions, path.with_suffix(".webp"), rate)
    return path


def _save_moving(
    base: Sequence[Tensor], tuned: Sequence[Tensor], captions: Sequence[str], path: Path, rate: float
) -> None:
    """Base beside tuned, playing together and over again, as an animated WebP of at most MOVING_BYTES: of half as many
    frames as often as it takes; no file where even two are too large."""
    from genalign.media.grid import grid

    length = max(len(row) for row in [*base, *tuned])
    count = min(MOVING, length)
    while count >= 2:
        pictures = []
        for number in torch.linspace(0, length - 1, count).round().long().tolist():
            frames = [[_low(row[min(number, len(row) - 1)]) for row in rows] for rows in (base, tuned)]
            pictures.append(grid(frames[0], frames[1], captions))
        file, milliseconds = io.BytesIO(), max(1, round(1000 * length / rate / count))
        pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)
        if file.tell() <= MOVING_BYTES:
            replace_file(path, file.getvalue())
            return
        count //= 2


def _low(frame: Tensor) -> Image:
    """A frame (3,H,W), at most STRIP_HEIGHT pixels high."""
    picture = image.to_pil(frame)
    width, height = picture.size
    if height <= STRIP_HEIGHT:
        return picture
    return picture.resize((max(1, round(width * STRIP_HEIGHT / height)), STRIP_HEIGHT))


def _strip(row: Tensor) -> Any:
    """STRIP evenly spaced frames of (F,3,H,W) side by side."""
    import PIL.Image

    numbers = torch.linspace(0, len(row) - 1, STRIP).round().long().tolist()
    frames = [_low(row[number]) for number in numbers]
    width, height = frames[0].size
    strip = PIL.Image.new("RGB", (STRIP * width + 2 * (STRIP - 1), height), "white")
    for place, frame in enumerate(frames):
        strip.paste(frame, (place * (width + 2), 0))
    return strip


def symptoms(rows: Sequence[Tensor]) -> dict[str, float]:
    """Shares of frames: `black`, and `frozen`, i.e. as the one before. `saturation` as of images, `brightness` (luma),
    `motion` (mean change from frame to frame) and `flicker` (mean colour off its neighbours'), each in [0,1]."""
    count = max(len(rows), 1)
    found = dict.fromkeys(("black", "frozen", "saturation", "brightness", "motion", "flicker"), 0.0)
    for row in rows:
        measures = measure(row)
        found["black"] += float((measures.colours.mean(1) < BLACK).float().mean()) / count
        found["frozen"] += measures.frozen / count
        found["saturation"] += float(measures.saturation.mean()) / count
        found["brightness"] += measures.brightness / count
        found["motion"] += measures.motion / count
        found["flicker"] += measures.flicker / count
    return found


def distance(first: Tensor, second: Tensor) -> float:
    """Over the frames that both have."""
    length = min(len(first), len(second))
    squares = 0.0
    for ours, theirs in zip(chunked(first[:length]), chunked(second[:length]), strict=True):
        squares += float((ours - theirs).square().sum(dtype=torch.float64))
    return float((squares / first[:length].numel()) ** 0.5)


def extent(row: Tensor, rate: float | None) -> float:
    return float(len(row))


def decode(given: Any, rate: float | None, budget: Budget) -> tuple[Tensor, float | None]:
    return torch.stack([image.decode(frame, None, budget)[0] for frame in given]), rate


def element(folder: Path, shown: str, label: str) -> str:
    data = base64.b64encode((folder / shown).read_bytes()).decode()
    source = f"data:video/{'webm' if shown.endswith('.webm') else 'mp4'};base64,{data}"
    return f'<video controls loop playsinline aria-label="{html.escape(label)}" src="{source}"></video>'
