"""Pictures of pairs: the base's sample beside the tuned policy's, captions underneath."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genalign.files.atomic import replace_file
from genalign.media.medium import Sound, Sounds

if TYPE_CHECKING:
    from PIL import Image

CELL = 128  # least side of one picture in pixels: smaller samples are enlarged, so that captions stay legible
COLUMNS = 4  # pairs in a row
GAP = 8


def grid(
    base: Sequence[Image.Image], tuned: Sequence[Image.Image], captions: Sequence[str], columns: int = COLUMNS
) -> Image.Image:
    """One picture of all pairs, `columns` pairs a row; all images have the size of the first."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=12)
    scale = max(1, -(-CELL // min(base[0].size)))
    width, height = (side * scale for side in base[0].size)
    wrapped = [_wrap(caption, font, 2 * width) for caption in captions]
    lines = 16
    cell = (2 * width + 2 * GAP, height + lines * max(text.count("\n") + 1 for text in wrapped) + GAP)
    columns = min(columns, len(base))
    sheet = Image.new("RGB", (columns * cell[0], lines + GAP + -(-len(base) // columns) * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        draw.text((column * cell[0] + GAP, GAP // 2), "base", "gray", font)
        draw.text((column * cell[0] + GAP + width + 2, GAP // 2), "tuned", "gray", font)
    for i, (left, right, text) in enumerate(zip(base, tuned, wrapped, strict=True)):
        x, y = (i % columns) * cell[0] + GAP, lines + GAP + (i // columns) * cell[1]
        sheet.paste(left.resize((width, height), Image.Resampling.NEAREST if scale > 1 else None), (x, y))
        sheet.paste(right.resize((width, height), Image.Resampling.NEAREST if scale > 1 else None), (x + width + 2, y))
        draw.multiline_text((x, y + height + 2), text, "black", font, spacing=2)
    return sheet


def save(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as PNG, as a whole or not at all."""
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    replace_file(path, file.getvalue())


def write_pairs(
    medium: str,
    write: Callable[[Any, Path, Sound | None], Path],
    base: Sequence[Any],
    tuned: Sequence[Any],
    drawn: Sequence[tuple[str, int]],
    path: Path,
    sounds: Sounds | None = None,
) -> None:
    """The samples themselves beside the picture at `path`, as base-0, tuned-0 ..., and a .jsonl that lists them:
    {prompt, seed, base, tuned, medium}, of which base and tuned are names of files."""
    lines = []
    for number, (prompt, seed) in enumerate(drawn):
        files = []
        for side, (which, rows) in enumerate((("base", base), ("tuned", tuned))):
            sound = None if sounds is None else sounds[side][number]
            files.append(write(rows[number], path.with_name(f"{which}-{number}"), sound).name)
        lines.append(
            json.dumps({"prompt": prompt, "seed": seed, "base": files[0], "tuned": files[1], "medium": medium})
        )
    replace_file(path.with_suffix(".jsonl"), ("\n".join(lines) + "\n").encode())


def _wrap(text: str, font: object, width: int) -> str:
    """Break at spaces so that each line fits `width` pixels; a longer word stands alone."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:  # type: ignore[attr-defined]
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
