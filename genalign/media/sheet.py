"""Sample pictures: the base beside the tuned policy at the same seeds, captions underneath."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genalign.types import Policy, Prompt, Weights, sample_seed

if TYPE_CHECKING:
    from PIL import Image

CELL = 128  # least side of one picture in pixels: smaller samples are enlarged, so that captions stay legible
COLUMNS = 4  # pairs in a row
GAP = 8


def sample_grid(
    policy: Policy,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    path: Path,
    guidance: float | None = None,
    steps: int | None = None,
    tuned: Weights = "policy",
) -> Path:
    """Draw each prompt once a seed with the base and with the tuned weights and write the pairs to `path` (.png).

    A policy that writes text gives a .jsonl of rows {prompt, seed, base, tuned} instead. Returns the path written.
    """
    repeated = [prompt for prompt in prompts for _ in seeds]
    drawn = [sample_seed(seed, prompt.uid, 0) for prompt in prompts for seed in seeds]
    pair = []
    for which in ("reference", tuned):
        with policy.weights(which):
            pair.append(policy.generate(repeated, drawn, guidance=guidance, steps=steps))
    path.parent.mkdir(parents=True, exist_ok=True)
    if "image" in policy.modalities:
        base, after = ([_picture(row) for row in media["image"].data] for media in pair)
        grid(base, after, [prompt.text for prompt in repeated]).save(path)
        return path
    path = path.with_suffix(".jsonl")
    rows = zip(repeated, drawn, pair[0]["text"].data, pair[1]["text"].data, strict=True)
    lines = [json.dumps({"prompt": p.text, "seed": s, "base": b, "tuned": t}) for p, s, b, t in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def grid(base: Sequence[Image.Image], tuned: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """One picture of all pairs, COLUMNS pairs a row; all images have the size of the first."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=12)
    scale = max(1, -(-CELL // min(base[0].size)))
    width, height = (side * scale for side in base[0].size)
    wrapped = [_wrap(caption, font, 2 * width) for caption in captions]
    lines = 16
    cell = (2 * width + 2 * GAP, height + lines * max(text.count("\n") + 1 for text in wrapped) + GAP)
    columns = min(COLUMNS, len(base))
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


def _picture(row: Tensor | str) -> Image.Image:
    from PIL import Image

    if not isinstance(row, Tensor):
        raise TypeError(f"an image row must be a tensor (3,H,W) in [0,1], not {type(row).__name__}")
    pixels = (row.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)  # (3, H, W)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


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
