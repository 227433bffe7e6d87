"""Where the things are that a recipe names, and what to say when they are nowhere."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from genalign.files.shipped import shipped
from genalign.types import GenalignError, UsageError

PATH_LENGTH = 256  # a longer text is no path


def find(name: str, folder: Path, *rooms: str) -> Path | None:
    """The file or folder `name`: absolute, relative to `folder`, or in one of the shipped rooms."""
    for candidate in (folder / Path(name).expanduser(), *(shipped(room, name) for room in rooms)):
        if candidate.exists():
            return Path(os.path.abspath(candidate))  # not resolved: a link has its own name and neighbours
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
    raise UsageError(
        f"there is no model folder {name!r} in {folder} or among genalign's own models{hint}; one in the working "
        f"directory is written ./{name}"
    )


def modality_of(model: Path | str) -> str:
    """What a model makes, told by its folder (of a hub id: by its index file) before any weight loads.

    Raises:
        UsageError: the folder holds no model. GenalignError: the hub cannot be reached.
    """
    if isinstance(model, str):
        return "image" if _hub_file(model, "model_index.json") else "text"
    if (model / "model_index.json").is_file():
        return "image"
    if (model / "config.json").is_file():
        return "text"
    raise UsageError(
        f"{model} is no model: it has neither model_index.json (diffusers pipeline) nor config.json (language model)"
    )


def _hub_file(name: str, file: str) -> bool:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        hf_hub_download(name, file)
        return True
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _unreachable(name) from error
    except EntryNotFoundError:
        return False
    except HfHubHTTPError as error:
        raise _unreachable(name) from error


def _unreachable(name: str) -> GenalignError:
    return GenalignError(
        f"model {name!r} is no folder here and cannot be fetched from the hub (check name and network)"
    )


def fetch_model(model: Path | str) -> Path:
    """The folder of a model, downloaded from the hub where it is a hub id.

    Raises:
        GenalignError: the hub cannot be reached.
    """
    if isinstance(model, Path):
        return model
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model))
    except OSError as error:  # what huggingface_hub raises offline, for a name it does not know, and without access
        raise _unreachable(model) from error


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


def data_path(name: str, folder: Path) -> Path | str:
    """A prompts file or folder, or the name itself where it can only be a dataset's id (`owner/name`)."""
    found = find(name, folder, "assets")
    if found is None and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith((".jsonl", ".txt", ".json")):
        return name
    return found or folder / name


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names) or 'none'}"


def portable(value: Any, folder: Path, folders: bool = False) -> Any:
    """Strings that name a file in `folder` become absolute paths; everything else stays.

    folders: so do those with a slash that name a folder there.
    """
    if isinstance(value, dict):
        return {key: portable(item, folder, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, folder, folders) for item in value]
    if folders and isinstance(value, str) and "/" in value and len(value) < PATH_LENGTH and (folder / value).is_dir():
        return str((folder / value).resolve())
    if not isinstance(value, str) or not re.search(r"\.(yaml|yml|jsonl|txt|safetensors|py:\w+)$", value):
        return value
    file, colon, function = value.partition(":") if ".py:" in value else (value, "", "")
    return f"{(folder / file).resolve()}{colon}{function}" if (folder / file).exists() else value
