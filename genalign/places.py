"""Where the things are that a recipe names, and what to say when they are nowhere."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from genalign.shipped import shipped
from genalign.types import UsageError


def find(name: str, folder: Path, *rooms: str) -> Path | None:
    """The file or folder `name`: absolute, relative to `folder`, or in one of the shipped rooms."""
    for candidate in (folder / Path(name).expanduser(), *(shipped(room, name) for room in rooms)):
        if candidate.exists():
            return candidate.resolve()
    return None


def model_path(name: str, folder: Path) -> Path | str:
    """A model's folder, or the name itself where it can be a hub id (`owner/name`).

    Raises:
        UsageError: neither a folder, nor a shipped model, nor the form of a hub id.
    """
    found = find(name, folder, "assets")
    if found is not None:
        return found
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    hint = nearest(name, shipped_models())
    raise UsageError(f"there is no model folder {name!r} in {folder} or among genalign's own models{hint}")


def modality_of(model: Path | str) -> str:
    """What a model makes, told by its folder alone (for a hub id: from its small index file)."""
    if isinstance(model, str):
        from huggingface_hub import file_exists

        return "image" if file_exists(model, "model_index.json") else "text"
    if (model / "model_index.json").is_file():
        return "image"
    if (model / "config.json").is_file():
        return "text"
    raise UsageError(
        f"{model} is no model: it has neither model_index.json (diffusers pipeline) nor config.json (language model)"
    )


def shipped_models() -> list[str]:
    marks = ("model_index.json", "config.json", "open_clip_config.json")
    return sorted({path.parent.name for mark in marks for path in shipped("assets").glob(f"*/{mark}")})


def shipped_recipes() -> list[str]:
    return sorted(path.stem for path in shipped("pipelines").glob("*.yaml"))


def recipe_path(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    for candidate in (shipped("pipelines", f"{name}.yaml"), shipped("pipelines", Path(name).name)):
        if candidate.is_file():
            return candidate
    raise UsageError(f"there is no recipe file or shipped recipe {name!r}{nearest(name, shipped_recipes())}")


def data_path(name: str, folder: Path) -> Path:
    return find(name, folder, "assets") or folder / name


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names) or 'none'}"
