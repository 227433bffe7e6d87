"""An adapter of others, or of an earlier run, merged into the frozen weights of a model before anything else."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genalign.types import GenalignError, UsageError

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEPT = 0.9  # of an adapter: below this share of it in the merged weights there is a warning
DOWN = re.compile(
    r"\.(lora_A|lora_down|lora\.down)\b"
)  # one such tensor a layer, in the files of peft, kohya, diffusers


def merge_into_pipeline(pipeline: Any, adapter: Path) -> None:
    """W + s B A for every layer of the file or folder `adapter`, in place; the pipeline has no LoRA afterwards.

    A folder may be what a run writes (its adapter/) or what peft or diffusers save; a file, a LoRA of any program that
    diffusers converts.

    Raises:
        UsageError: no LoRA there, one of another model, or a file of which diffusers would read a part only.
    """
    folders = {path.parent.name: path.parent for path in adapter.glob(f"*/{PEFT_CONFIG}")} if adapter.is_dir() else {}
    own = {name: folder for name, folder in folders.items() if isinstance(getattr(pipeline, name, None), nn.Module)}
    if own:  # of several denoisers, a folder each
        for name, folder in own.items():
            setattr(pipeline, name, merged(getattr(pipeline, name), folder))
        return
    if (adapter / PEFT_CONFIG).is_file():
        for name in ("transformer", "unet"):
            if getattr(pipeline, name, None) is not None:
                setattr(pipeline, name, merged(getattr(pipeline, name), adapter))
                return
        raise UsageError(f"{adapter} is an adapter of one network, and the pipeline has no transformer or unet")
    _merge_by_diffusers(pipeline, _one_file(adapter))


def merged(model: Any, folder: Path) -> Any:
    """The model with the LoRA that peft saved in `folder` in its weights.

    Raises:
        UsageError: not a LoRA of this model, or not in a safetensors file. GenalignError: the file is corrupt.
    """
    from peft import LoraConfig, PeftModel

    if not (folder / PEFT_WEIGHTS).is_file():
        raise UsageError(f"{folder} has no {PEFT_WEIGHTS}; genalign reads adapters from safetensors only")
    kind = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8")).get("peft_type")
    if kind != "LORA":
        raise UsageError(f"{folder} holds an adapter of the kind {kind}, and only a LoRA can be merged")
    wanted = _layers(folder / PEFT_WEIGHTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are missing, which are counted here
            config = LoraConfig.from_pretrained(str(folder))
            config.inference_mode = True
            tuned = PeftModel(model, config)
            loaded = tuned.load_adapter(str(folder), "default")
    except (ValueError, RuntimeError) as error:
        raise _other_model(folder, _reason(error)) from error
    lacking = [key for key in loaded.missing_keys if "lora_" in key]
    if loaded.unexpected_keys or lacking:
        raise _other_model(folder, f"{[*loaded.unexpected_keys, *lacking][0]} does not agree")
    if not wanted:
        raise UsageError(f"{folder / PEFT_WEIGHTS} holds no LoRA")
    _refuse_shared(folder, tuned)
    _refuse_unlike(folder, [tuned])
    _warn_of_rounding(folder, [tuned])
    return tuned.merge_and_unload(safe_merge=True)


def _refuse_shared(folder: Path, tuned: nn.Module) -> None:
    """An update added to a weight that another layer reads too would change that layer as well, without a word.

    Raises:
        UsageError: naming both layers.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in tuned.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), []).append(name.removeprefix("base_model.model."))
    for names in owners.values():
        adapted = [name for name in names if name.endswith(".base_layer.weight")]
        if adapted and len(names) > 1:
            other = next(name for name in names if name != adapted[0])
            first, other = (name.removesuffix(".weight").removesuffix(".base_layer") for name in (adapted[0], other))
            raise UsageError(
                f"policy.merged: {folder} adapts {first}, whose weight {other} shares, so merging would change both; "
                f"take an adapter that leaves it alone"
            )


def _refuse_unlike(adapter: Path, networks: Sequence[nn.Module]) -> None:
    """Where W + s B A is not the layer that was trained, as peft merges it without a word.

    A weight that is computed (by weight or spectral norm) loses what is added to it at the next call; and peft's own
    convolution pads with zeros, whatever the layer pads with.

    Raises:
        UsageError: naming the first such layer.
    """
    for name, layer in _lora_layers(networks):
        base, why = layer.get_base_layer(), ""
        if hasattr(base, "weight") and "weight" not in dict(base.named_parameters(recurse=False)):
            why = "whose weight is computed from others, so that what is merged would be lost"
        elif getattr(base, "padding_mode", "zeros") != "zeros" and any(base.padding):
            why = f"which pads by {base.padding_mode} and the adapter by zeros, so merging would change what it gives"
        if why:
            raise UsageError(f"policy.merged: {adapter} adapts {name}, {why}; take an adapter that leaves it alone")


def _merge_by_diffusers(pipeline: Any, file: Path) -> None:
    wanted = _layers(file)
    if not wanted:
        raise UsageError(f"{file} holds no LoRA; give a file whose tensors are named lora_A or lora_down")
    if not hasattr(pipeline, "load_lora_weights"):
        raise UsageError(f"{type(pipeline).__name__} loads no LoRA of diffusers; give a folder that peft saved")
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True, local_files_only=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise _other_model(file, _reason(error)) from error
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    found = len(_lora_layers(networks))
    if found < wanted:  # diffusers leaves the others out with a line in its log
        raise _other_model(file, f"{found} of its {wanted} layers are there")
    _refuse_unlike(file, networks)
    _warn_of_rounding(file, networks)
    pipeline.fuse_lora(safe_fusing=True)
    pipeline.unload_lora_weights()


def _lora_layers(networks: Sequence[nn.Module]) -> list[tuple[str, Any]]:
    """The adapted layers with their names in the network."""
    from peft.tuners.lora import LoraLayer

    named = [pair for network in networks for pair in network.named_modules()]
    return [(name.removeprefix("base_model.model."), layer) for name, layer in named if isinstance(layer, LoraLayer)]


@torch.no_grad()
def _warn_of_rounding(adapter: Path, networks: Sequence[nn.Module]) -> None:
    """W + s B A rounded to the precision of W is W again where the adapter is weak, as those of alignment are."""
    along = whole = 0.0
    for _, layer in _lora_layers(networks):
        weight = layer.get_base_layer().weight
        delta = sum(layer.get_delta_weight(name).float() for name in layer.active_adapters)
        moved = (weight.float() + delta).to(weight.dtype).float() - weight.float()
        along, whole = along + float((moved * delta).sum()), whole + float((delta * delta).sum())
    if whole and along / whole < KEPT:
        precision = str(next(networks[0].parameters()).dtype).removeprefix("torch.")
        warnings.warn(
            f"policy.merged: rounded to {precision}, the weights keep {along / whole:.0%} of {adapter.name}; set "
            f"policy.dtype=float32 to keep all of it",
            stacklevel=2,
        )


def _one_file(adapter: Path) -> Path:
    if adapter.is_file():
        return adapter
    files = sorted(adapter.glob("*.safetensors"))
    if len(files) != 1:
        known = f"{len(files)} of them: name one as {files[0]}" if files else "none"
        raise UsageError(f"{adapter} should hold one .safetensors file of a LoRA, and has {known}")
    return files[0]


def _layers(file: Path) -> int:
    """How many layers a LoRA file adapts."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return sum(bool(DOWN.search(name)) for name in opened.keys())  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise GenalignError(f"{file} is corrupt ({error}); copy or download it again") from error


def _other_model(adapter: Path, why: str) -> UsageError:
    return UsageError(f"policy.merged: {adapter} belongs to another model ({why}); take the one it was made for")


def _reason(error: Exception) -> str:
    """The first line of an error that says something: torch's of tensors that do not fit has a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
