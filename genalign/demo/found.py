"""Pictures that somebody drew elsewhere, by the prompt and the seed that A1111 or ComfyUI wrote into them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genalign.media.image import PICTURES, SUFFIXES
from genalign.types import UsageError

USER_COMMENT, EXIF = 0x9286, 0x8769  # tags of EXIF: where A1111 writes into JPEG and WebP, and the part that has it
SETTINGS = re.compile(r"^(Steps: \d+|Negative prompt:)", re.MULTILINE)  # the first line that is no longer the prompt
SEED = re.compile(r"\bSeed: (\d+)")
DEEPEST = 16  # nodes between a sampler and its text


@dataclass(frozen=True)
class Found:
    """A picture, what it was asked to show, and its seed where that is known."""

    file: Path
    prompt: str
    seed: int | None


def pictures_by_prompt(folder: Path) -> dict[str, list[Found]]:
    """The pictures of a folder and below by their prompt, of prompts that have at least two.

    Raises:
        UsageError: no such folder, or no two pictures of one prompt.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder of pictures {folder}; check --pictures")
    groups: dict[str, list[Found]] = {}
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
        if (found := read_metadata(file)) is not None:
            groups.setdefault(found.prompt, []).append(found)
    pairs = {prompt: found for prompt, found in groups.items() if len(found) > 1}
    if not pairs:
        known = sum(map(len, groups.values()))
        raise UsageError(
            f"no two pictures in {folder} have one prompt ({known} have any, written by A1111 or ComfyUI); draw several"
            f" of each prompt"
        )
    return pairs


def read_metadata(file: Path) -> Found | None:
    """What the file says of itself; None where it is no picture, or says nothing that can be read."""
    import PIL.Image

    try:
        with PIL.Image.open(file, formats=PICTURES) as image:
            info, comment = dict(image.info), image.getexif().get_ifd(EXIF).get(USER_COMMENT)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return None
    text = info.get("parameters") or _comment(comment)
    found = _a1111(text) if isinstance(text, str) else _comfyui(info.get("prompt"))
    return None if found is None else Found(file, *found)


def _comment(value: Any) -> str | None:
    """EXIF's UserComment, behind the eight bytes that name its code."""
    if not isinstance(value, bytes) or len(value) <= 8:
        return None
    codes = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii"}
    return value[8:].decode(codes.get(value[:8], "utf-8"), errors="ignore").strip("\0 ") or None


def _a1111(text: str) -> tuple[str, int | None] | None:
    """The prompt stands before the line of settings, or of what it should not show."""
    settings = SETTINGS.search(text)
    prompt = " ".join(text[: settings.start() if settings else None].split())
    seed = SEED.search(text)
    return (prompt, int(seed[1]) if seed else None) if prompt else None


def _comfyui(text: Any) -> tuple[str, int | None] | None:
    """The graph is a mapping of nodes: a sampler has a link to its positive text, and a seed."""
    try:
        graph = json.loads(text)
    except (TypeError, ValueError):
        return None
    for node in graph.values() if isinstance(graph, dict) else ():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if isinstance(inputs, dict) and "positive" in inputs:
            prompt = _text(graph, inputs["positive"], DEEPEST)
            seed = inputs.get("seed", inputs.get("noise_seed"))
            if prompt:
                return prompt, seed if isinstance(seed, int) else None
    return None


def _text(graph: Mapping[str, Any], link: Any, left: int) -> str | None:
    """The first text on the way up from a link, which is [number of the node, its output]."""
    node = graph.get(str(link[0])) if isinstance(link, list) and link and left else None
    inputs = node.get("inputs") if isinstance(node, dict) else None
    if not isinstance(inputs, dict):
        return None
    if isinstance(text := inputs.get("text"), str):
        return " ".join(text.split())
    return next((found for value in inputs.values() if (found := _text(graph, value, left - 1))), None)
