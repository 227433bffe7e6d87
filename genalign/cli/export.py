"""Hand an adapter on: to diffusers as it is, to ComfyUI under its key names, with its provenance either way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from genalign.cli.comfyui import comfyui_tensors
from genalign.evaluation.card import DIFFUSERS_FILE, base_model, pipeline_index, provenance, write_card
from genalign.files.atomic import replace_file, replacing
from genalign.files.header import sort_header
from genalign.types import GenalignError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

TARGETS = ("diffusers", "comfyui")
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export(run: Path, to: str, dest: Path) -> Path:
    """Write the adapter of `run` for another program and return what was written.

    diffusers: a folder `dest` with the adapter's files, the model card and provenance.json. comfyui: one .safetensors
    file (`dest` itself where it ends so, else `dest`/<run>.safetensors) under the names that ComfyUI knows for this
    family (see comfyui.py), with the provenance in its header.

    Raises:
        UsageError: unknown target, `dest` is taken, or a model whose layers ComfyUI has no names for.
        GenalignError: the run has no adapter, or its file is damaged.
    """
    if to not in TARGETS:
        raise UsageError(f"there is no export to {to!r}; take one of {', '.join(TARGETS)}")
    facts = provenance(run)
    tensors, config = _read_adapter(run)
    if to == "diffusers":
        _refuse_taken(dest, dest.exists() and (not dest.is_dir() or any(dest.iterdir())))
        write_card(run)
        folders = [file.parent for file in sorted((run / "adapter").rglob(PEFT_FILES[0]))]
        for folder in folders:  # their own files; what else lies there stays
            part = dest / folder.relative_to(run)
            part.mkdir(parents=True, exist_ok=True)
            for file in (folder / name for name in (*PEFT_FILES, DIFFUSERS_FILE) if (folder / name).is_file()):
                shutil.copy2(file, part / file.name)
        shutil.copy2(run / "README.md", dest / "README.md")
        replace_file(dest / "provenance.json", json.dumps(facts, indent=2) + "\n")
        return dest
    if not (run / "adapter" / PEFT_FILES[0]).is_file():
        raise UsageError(f"{run} tuned several denoisers, and ComfyUI takes a file of one; take --to diffusers")
    renamed = comfyui_tensors(tensors, config, _denoiser(run))
    path = dest if dest.suffix == ".safetensors" else dest / f"{run.resolve().name}.safetensors"
    _refuse_taken(path, path.exists())
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        save_file(renamed, draft, metadata={"format": "pt", **facts})
        sort_header(draft)
    return path


def _denoiser(run: Path) -> str:
    """The class of the denoiser that the run adapted, as model_index.json of its pipeline names it."""
    index = pipeline_index(base_model(run))
    if index is None:
        raise UsageError(
            f"{run} tuned a model that is not a diffusers pipeline, and ComfyUI loads no other adapter; take "
            f"--to diffusers"
        )
    entry = index.get("transformer") or index.get("unet") or [None, "a pipeline without transformer or unet"]
    return str(entry[1])


def _read_adapter(run: Path) -> tuple[dict[str, Tensor], dict]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folders = [file.parent for file in sorted((run / "adapter").rglob(PEFT_FILES[0]))]  # one for each denoiser
    folder = folders[0] if folders else run / "adapter"
    if not all((folder / name).is_file() for name in PEFT_FILES):
        raise GenalignError(f"{run} has no adapter/ to export; let its training finish (genalign train --resume {run})")
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
        return tensors, json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise GenalignError(
            f"the adapter in {folder} is damaged ({error}); resume the run to write it again"
        ) from error


def _refuse_taken(path: Path, taken: bool) -> None:
    if taken:
        raise UsageError(f"{path} exists already; export to a new place, or remove it first")
