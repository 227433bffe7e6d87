"""Where the things are that a recipe names: in its folder, in the shipped rooms, on the hub."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from genalign.files.hub_files import needed_files
from genalign.files.shipped import CONFIG, FIT, PIPELINE, shipped, shipped_models, shipped_recipes
from genalign.types import GenalignError, UsageError, nearest

PATH_LENGTH = 256  # a longer text is not a path
PROMPT_FILES = (".txt", ".jsonl", ".json", ".csv", ".parquet")  # what ends so is a file, and no dataset's id
WEIGHT_FILES = (".gguf", ".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # likewise, and no model's or adapter's id
LOCAL = r"\.(yaml|yml|jsonl?|txt|csv|parquet|safetensors|gguf|py:\w+)$"  # names of files that recipes read
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_ADAPTER = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+\.safetensors)?")
BUILT_BY_USERS = {"tiny-music": "music"}  # models of recipes that assets/ lacks, and what the lab calls each


def find(name: str, folder: Path, *rooms: str) -> Path | None:
    """The file or folder `name`: absolute, relative to `folder`, or in one of the shipped rooms; None where it is not.

    All that a recipe or a reward file names is looked for here, in this order.
    """
    for candidate in (folder / Path(name).expanduser(), *(shipped(room, name) for room in rooms)):
        try:
            if candidate.exists():
                return Path(os.path.abspath(candidate))  # not resolved: a link has its own name and neighbours
        except (OSError, ValueError):  # a text too long for a path, or with a NUL
            return None
    return None


def model_path(name: str, folder: Path) -> Path | str:
    """A model's folder (or its one file of weights), or the name itself where it can be a hub id (`owner/name`).

    Raises:
        UsageError: neither a folder, nor a shipped model, nor the form of a hub id; or a file that is not there.
    """
    found = find(name, folder, "assets")
    if found is not None:
        return found
    if name.endswith(WEIGHT_FILES):
        raise UsageError(f"there is no file {name!r}; check the path")
    if name.startswith("."):  # a path, whatever follows: no owner on the hub begins with a dot
        raise UsageError(f"there is no model folder {name!r}; check the path")
    if HUB_ID.fullmatch(name):
        return name
    if name in BUILT_BY_USERS:
        raise UsageError(
            f"{name} is not shipped yet; make it by `genalign lab build {BUILT_BY_USERS[name]}`, which takes some "
            f"hours of one core, or set policy.model"
        )
    raise UsageError(
        f"there is no model folder {name!r} in {folder} or among genalign's own models"
        f"{nearest(name, shipped_models())}; one in the working directory is written ./{name}"
    )


def file_path(name: str, folder: Path) -> Path:
    """A reward file or a file of functions, relative to `folder`, then among the shipped rewards.

    Raises:
        UsageError: in neither place; the nearest name is given.
    """
    found = find(name, folder, "rewards")
    if found is not None and found.is_file():
        return found
    pattern = f"*{Path(name).suffix}"
    rooms = [shipped("rewards")]
    if folder.resolve() != shipped("pipelines").resolve():  # which holds recipes only
        rooms.append(folder)
    known = sorted({file.name for room in rooms for file in room.glob(pattern)})
    raise UsageError(
        f"there is no reward file {name!r} in {folder.resolve()} or among the shipped rewards{nearest(name, known)}"
    )


def pipeline_class(model: Path | str) -> str | None:
    """The name of a pipeline's class in diffusers, by the index in its folder or at its hub id, before any weight
    loads; "" where the index does not name one, and None of a language model.

    Raises:
        UsageError: the folder holds no model. GenalignError: the hub cannot be reached.
    """
    index = _hub_file(model, PIPELINE) if isinstance(model, str) else model / PIPELINE
    if index is not None and index.is_file():
        try:
            name = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
        except (ValueError, AttributeError):  # whoever loads it says what is wrong
            name = None
        return name if isinstance(name, str) else ""
    if isinstance(model, str) or is_gguf(model):
        return None
    check_component(model)
    if (model / CONFIG).is_file():
        return None
    raise UsageError(
        f"{model} is not a model: it has neither model_index.json (diffusers pipeline) nor config.json (language model)"
    )


def is_gguf(model: Path | str) -> bool:
    """Whether a model is a file of a language model's weights, its configuration and its tokenizer."""
    return isinstance(model, Path) and model.suffix == ".gguf" and model.is_file()


def model_file(model: Path | str, name: str) -> Path:
    """A small file of a model, by its folder or hub id.

    Raises:
        UsageError: there is none. GenalignError: the hub cannot be reached.
    """
    found = model / name if isinstance(model, Path) else _hub_file(model, name)
    if found is None or not found.is_file():
        raise UsageError(f"{model} has no {name}; check the folder, or download it again, whole")
    return found


def check_component(model: Path) -> None:
    """Raises UsageError where a folder holds a part of a pipeline and not a model of its own."""
    file = model / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError:
        config = {}
    part = config.get("_class_name") if isinstance(config, dict) else None
    inside = (model.parent / PIPELINE).is_file()
    if part is not None or (inside and not (model / PIPELINE).is_file()):
        whole = f", {model.parent}" if inside else ", which holds a model_index.json"
        raise UsageError(
            f"{model} is a part of a pipeline ({part or model.name}) and not a model; give the folder of the whole"
            f" pipeline{whole}"
        )


def _hub_file(name: str, file: str) -> Path | None:
    """Where a file of a hub repository was downloaded to; None where there is no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(name, file))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _unreachable(name) from error
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise _unreachable(name) from error


def _unreachable(name: str) -> GenalignError:
    return GenalignError(
        f"model {name!r} is not a folder here and cannot be fetched from the hub (check name and network)"
    )


def fetch_model(model: Path | str) -> Path:
    """The folder of a model, downloaded from the hub where it is a hub id.

    Raises:
        GenalignError: the hub cannot be reached.
    """
    if isinstance(model, Path):
        return model
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        wanted: list[str] | None = needed_files(list_repo_files(model))
    except OSError:  # offline: what was fetched before is found without a list
        wanted = None
    try:
        return Path(snapshot_download(model, allow_patterns=wanted))
    except OSError as error:  # what huggingface_hub raises offline, for a name it does not know, and without access
        raise _unreachable(model) from error


def adapter_path(name: str, folder: Path) -> Path | str:
    """A LoRA's folder or file, or the name itself where it can be on the hub: owner/name, owner/name/file.safetensors.

    Raises:
        UsageError: none of them.
    """
    found = find(name, folder, "assets")
    if found is not None:
        return found
    own_file = name.count("/") < 2 and name.endswith(WEIGHT_FILES)
    if HUB_ADAPTER.fullmatch(name) and not name.startswith(".") and not own_file:
        return name
    raise UsageError(f"policy.merged: there is no adapter {name!r} in {folder} or among genalign's own; check the path")


def fetch_adapter(adapter: Path | str) -> Path:
    """The folder or file of a LoRA, downloaded where it is on the hub.

    Raises:
        GenalignError: the hub cannot be reached, or has no such file.
    """
    if isinstance(adapter, Path):
        return adapter
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    owner, name, *file = adapter.split("/", 2)
    try:
        if file:
            return Path(hf_hub_download(f"{owner}/{name}", file[0]))
        return Path(snapshot_download(adapter, allow_patterns=["*.safetensors", "adapter_config.json"]))
    except (OSError, EntryNotFoundError) as error:
        raise _unreachable(adapter) from error


def recipe_path(name: str) -> Path:
    """A recipe's file: a path, or a shipped recipe by its name; or that of a shipped reward, which it was fitted by.

    Raises:
        UsageError: neither; the nearest shipped name is given.
    """
    if Path(name).is_file():
        return Path(name)
    places = (shipped("pipelines", f"{name}.yaml"), shipped("pipelines", Path(name).name), shipped("assets", name, FIT))
    for candidate in places:
        if candidate.is_file():
            return candidate
    raise UsageError(f"there is no recipe file or shipped recipe {name!r}{nearest(name, shipped_recipes())}")


def data_path(name: str, folder: Path) -> Path | str:
    """A prompts file or folder, or the name itself where it can only be a dataset's id (`owner/name`)."""
    found = find(name, folder, "assets")
    if found is None and HUB_ID.fullmatch(name) and not name.endswith(PROMPT_FILES):
        return name
    return found or folder / name


def stable_name(name: str, folder: Path, *rooms: str) -> str:
    """What `find` finds, named so that any folder and machine finds it again: what is shipped by its name in its room,
    what is local by its full path; `name` itself (a hub id) where nothing is found."""
    found = find(name, folder, *rooms)
    if found is None:
        return name
    for room in rooms:
        if found.is_relative_to(shipped(room).resolve()):
            return found.relative_to(shipped(room).resolve()).as_posix()
    return str(found)


def portable(value: Any, folder: Path, folders: bool = False) -> Any:
    """Strings that name a file in `folder`, of a kind that recipes name, become absolute paths; everything else stays.

    folders: so do those with a slash that name a folder or any other file there.
    """
    if isinstance(value, dict):
        return {key: portable(item, folder, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, folder, folders) for item in value]
    if folders and isinstance(value, str) and "/" in value and len(value) < PATH_LENGTH and (folder / value).exists():
        return str((folder / value).resolve())
    if not isinstance(value, str) or not re.search(LOCAL, value):
        return value
    file, colon, function = value.partition(":") if ".py:" in value else (value, "", "")
    return f"{(folder / file).resolve()}{colon}{function}" if (folder / file).exists() else value
