"""Hand an adapter on: to diffusers as it is, to ComfyUI under its key names, with its provenance either way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from genalign.evaluation.card import base_model, pipeline_index, provenance, write_card
from genalign.files.atomic import replace_file, replacing
from genalign.types import GenalignError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

TARGETS = ("diffusers", "comfyui")
PEFT_PREFIX = "base_model.model."


def export(run: Path, to: str, dest: Path) -> Path:
    """Write the adapter of `run` for another program and return what was written.

    diffusers: a folder `dest` with the adapter's files, the model card and provenance.json. comfyui: one .safetensors
    file (`dest` itself where it ends so, else `dest`/<run>.safetensors) with the keys
    `diffusion_model.<block>.lora_A.weight`, `.lora_B.weight` and `.alpha` and the provenance in its header. Blocks keep
    the names they have in diffusers; ComfyUI finds them in the models where it uses the same names.

    Raises:
        UsageError: unknown target, `dest` is taken, or a language model is to go to ComfyUI.
        GenalignError: the run has no adapter, or its file is damaged.
    """
    if to not in TARGETS:
        raise UsageError(f"there is no export to {to!r}; take one of {', '.join(TARGETS)}")
    facts = provenance(run)
    tensors, config = _read_adapter(run)
    if to == "diffusers":
        _refuse_taken(dest, dest.exists() and (not dest.is_dir() or any(dest.iterdir())))
        write_card(run)
        shutil.copytree(run / "adapter", dest / "adapter")
        shutil.copy2(run / "README.md", dest / "README.md")
        replace_file(dest / "provenance.json", json.dumps(facts, indent=2) + "\n")
        return dest
    if pipeline_index(base_model(run)) is None:
        raise UsageError(f"{run} tuned no diffusers pipeline, and ComfyUI loads no other adapter; take --to diffusers")
    path = dest if dest.suffix == ".safetensors" else dest / f"{run.resolve().name}.safetensors"
    _refuse_taken(path, path.exists())
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        save_file(comfyui_keys(tensors, config), draft, metadata={"format": "pt", **facts})
    return path


def comfyui_keys(tensors: dict[str, Tensor], config: dict) -> dict[str, Tensor]:
    """Rename PEFT's LoRA keys; ComfyUI scales by alpha / rank, so alpha goes along as a scalar a block."""
    import torch

    renamed = {}
    for key, tensor in tensors.items():
        block, _, part = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):
            raise GenalignError(f"adapter key {key!r} is not a LoRA matrix, and ComfyUI's form has no place for it")
        renamed[f"diffusion_model.{block}.lora_{part}"] = tensor.contiguous()
        alpha = (config.get("alpha_pattern") or {}).get(block, config["lora_alpha"])
        renamed[f"diffusion_model.{block}.alpha"] = torch.tensor(float(alpha))
    return renamed


def _read_adapter(run: Path) -> tuple[dict[str, Tensor], dict]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = run / "adapter"
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
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
