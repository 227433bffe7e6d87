"""What somebody else's files may name: their neighbours, and nothing else. No code, no other place, no address.

A recipe is its author's program and may name files anywhere. A dataset row, a checkpoint and a model folder are data:
`neighbour` is how a path in one of them is read, `check_model` what a model folder passes before a library loads it.
SECURITY.md lists all of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

from genalign.files.shipped import CONFIG, OPEN_CLIP, PIPELINE
from genalign.types import UsageError

ADAPTER, TOKENIZER = "adapter_config.json", "tokenizer_config.json"
CONFIGS = (PIPELINE, CONFIG, ADAPTER, TOKENIZER, OPEN_CLIP)
INDICES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def neighbour(root: Path, name: str, where: str) -> Path:
    """The file `name` below `root`. Links are followed: whoever unpacked the folder made them.

    Raises:
        UsageError: an absolute path to another folder, an address, or a way up; the sentence begins with `where`.
    """
    given = Path(name)
    away = given.is_absolute() and not any(given.is_relative_to(place) for place in (root.absolute(), root.resolve()))
    if away or ".." in given.parts or PureWindowsPath(name).drive or "://" in name:
        raise UsageError(f"{where}: {name!r} is not a file below {root}; put it there and name it from there")
    return root / given


def check_model(model: str | Path) -> None:
    """Refuse a model, a folder or a hub id, whose own files name code, other places or pickles.

    The libraries that load it are told `trust_remote_code=False` besides; this holds whatever their version.

    Raises:
        UsageError: naming the file and what stands in it.
    """
    if Path(model).is_dir():
        _check_folder(Path(model))
    elif HUB_ID.fullmatch(str(model)):
        for name in (*CONFIGS, *INDICES):
            if (file := _of_hub(str(model), name)) is not None:
                _check_file(file, name)


def _of_hub(model: str, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(model, name))
    except (OSError, ValueError, HfHubHTTPError):  # it has none, or nothing can be fetched: whoever loads it says so
        return None


def _check_folder(folder: Path) -> None:
    parts = [folder]
    if (folder / PIPELINE).is_file():
        index = _json(folder / PIPELINE)
        parts += [
            folder / name for name, value in index.items() if isinstance(value, list) and (folder / name).is_dir()
        ]
    for part in parts:
        for file in sorted(part.glob("*.json")):
            if part != folder and file.name == PIPELINE:
                raise UsageError(
                    f"{file} is a pipeline within a pipeline, whose weights nobody would check; move it out"
                )
            _check_file(file, file.name)


def _check_file(file: Path, name: str) -> None:
    checks = {
        PIPELINE: _check_pipeline, ADAPTER: _check_adapter, TOKENIZER: _check_tokenizer, OPEN_CLIP: _check_open_clip,
        CONFIG: _check_config,
    }  # fmt: skip
    if name.endswith(".safetensors.index.json"):
        check_shards(file)
    elif name in checks:
        checks[name](file, _json(file))


def check_shards(index: Path) -> list[Path]:
    """The files that an index of weights names.

    Raises:
        UsageError: one is no .safetensors file, or does not lie beside the index.
    """
    names = _json(index).get("weight_map", {})
    shards = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    for shard in shards:
        if not shard.endswith(".safetensors"):
            raise UsageError(f"{index} names {shard!r}; genalign reads weights from .safetensors files only")
    return [neighbour(index.parent, shard, str(index)) for shard in shards]


def _check_pipeline(file: Path, index: dict[str, Any]) -> None:
    """diffusers 0.36 runs what these name, out of a local folder, without asking."""
    if not isinstance(index.get("_class_name"), str):
        raise UsageError(f"{file} names a pipeline of its own code; genalign loads pipelines of diffusers only")
    for name, value in index.items():
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
            continue
        library, kind = value
        own = library in ("diffusers", "transformers") or (
            library.isidentifier() and find_spec(f"diffusers.pipelines.{library}")
        )
        automatic = library != "diffusers" and str(kind).startswith("Auto")  # whose class the component's config picks
        if not own or automatic or not isinstance(kind, str) or kind.startswith("Onnx"):
            raise UsageError(
                f"{file} names {kind!r} of {library!r} as its {name}; genalign loads components of diffusers and "
                f"transformers only, from safetensors"
            )
        neighbour(file.parent, name, str(file))


def _check_adapter(file: Path, config: dict[str, Any]) -> None:
    base = config.get("base_model_name_or_path")
    raise UsageError(
        f"{file.parent} is an adapter of {base!r}, and a model folder cannot send genalign to another; merge it into "
        f"its base (peft's merge_and_unload), or take {ADAPTER} away"
    )


def _check_tokenizer(file: Path, config: dict[str, Any]) -> None:
    """A path of the machine that saved it is common, and no harm where it leads nowhere."""
    for key, value in config.items():
        if key.endswith("_file") and isinstance(value, str) and (file.parent / value).is_file():
            neighbour(file.parent, value, f"{key} in {file}")


def _check_config(file: Path, config: dict[str, Any]) -> None:
    for key, value in _entries(config):
        if key.endswith(("attn_implementation", "experts_implementation")) and "/" in str(value):
            raise UsageError(f"{file} names {value!r} as {key}, code to be fetched from the hub; take that line away")


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key), value
            yield from _entries(value)


def _check_open_clip(file: Path, config: dict[str, Any]) -> None:
    model = config.get("model_cfg", config)
    text, vision = model.get("text_cfg") or {}, model.get("vision_cfg") or {}
    for key in text.get("tokenizer_kwargs") or {}:
        if "code" in key or key.endswith("_file"):
            raise UsageError(f"{file} sets {key} for its tokenizer; take that line away")
    if not re.fullmatch(r"[\w.-]*", str(vision.get("timm_model_name") or "")):
        raise UsageError(
            f"{file} names the vision tower {vision['timm_model_name']!r}, which lies elsewhere; merge it in"
        )
    for key in ("hf_model_name", "hf_tokenizer_name"):
        name = str(text.get(key) or "")
        if name and (not HUB_ID.fullmatch(name) or ".." in name):
            raise UsageError(f"{file} names {name!r} as {key}; only the id of a model on the hub can stand there")


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}
