"""A diffusion pipeline from a folder, as people have them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from genalign.files.hub_files import variant_of
from genalign.files.shipped import PIPELINE
from genalign.files.untrusted import check_model
from genalign.policy.denoisers import DENOISERS, denoiser_names
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.merged import merge_into_pipeline
from genalign.policy.quantize import check_quantization, quantize_layers, read_gguf
from genalign.policy.settings import PolicySettings
from genalign.types import GenalignError, UsageError

WEIGHTS = "*.safetensors"


def load_diffusion(settings: PolicySettings, folder: Path, device: str) -> DiffusionPolicy:
    """The pipeline in a folder; only safetensors and only local files are read.

    Raises UsageError where diffusers cannot read it, where its weights are incomplete or hold a LoRA, where
    `settings.merged` does not fit them, or what `settings.quantization` names does not run here.
    """
    from diffusers import DiffusionPipeline

    check_model(folder)
    at, dtype, quantization = torch.device(device), getattr(torch, settings.dtype), settings.quantization
    if quantization is not None:
        check_quantization(quantization, at, dtype)
    try:
        index = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))
        # An absent component must be given as None, else diffusers warns that it expected one.
        absent = {name: None for name, kind in index.items() if kind == [None, None]}
        parts = {name: kind for name, kind in index.items() if isinstance(kind, list) and kind != [None, None]}
        _check_no_lora(folder, parts)
        variant = _variant(folder, parts)
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=dtype,
            variant=variant,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **absent,
            **_from_gguf(quantization, folder, parts, dtype),
            **_text_models(folder, parts, dtype, variant),
        )
    except GenalignError:
        raise
    except Exception as error:  # diffusers raises whatever the first broken file raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"the pipeline in {folder} cannot be loaded: {reason}") from error
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            empty = [key for key, tensor in part.state_dict().items() if tensor.is_meta]
            if empty:
                raise _incomplete(folder / name, empty)
    _warn_of_scheduler(pipeline, parts)
    for adapter in settings.adapters_merged:
        merge_into_pipeline(pipeline, Path(adapter))
    if quantization is not None and not quantization.endswith(".gguf"):
        for name in denoiser_names(pipeline):
            quantize_layers(getattr(pipeline, name), quantization, at)
    return DiffusionPolicy(pipeline if settings.offload is not None else pipeline.to(at), settings, at)


def _warn_of_scheduler(pipeline: Any, parts: dict[str, Any]) -> None:
    """Some pipelines exchange a scheduler that they were saved with for one of their own."""
    named, has = parts.get("scheduler", [None, None])[1], type(getattr(pipeline, "scheduler", None)).__name__
    if named not in (None, has):
        warnings.warn(
            f"{type(pipeline).__name__} takes a {has} in place of the {named} that is saved with it, here as in plain"
            f" diffusers; noise levels may be others than those it was trained at",
            stacklevel=3,
        )


def _from_gguf(quantization: str | None, folder: Path, parts: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The denoiser, where it is read from a file of its own."""
    if quantization is None or not quantization.endswith(".gguf"):
        return {}
    names = sorted(name for name in parts if name.startswith(DENOISERS))
    if len(names) != 1:
        raise UsageError(f"a .gguf file holds one denoiser, and {folder} has {len(names)}; take another quantization")
    return {names[0]: read_gguf(Path(quantization), folder, names[0], dtype)}


def _incomplete(part: Path, missing: list[str]) -> UsageError:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return UsageError(f"the weights in {part} lack {missing[0]}{more}; copy or download that folder again, whole")


def _names(part: Path) -> set[str]:
    """Names of the tensors in a component's folder."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in part.glob(WEIGHTS):
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    return names


def _check_no_lora(folder: Path, parts: dict[str, Any]) -> None:
    for part in parts:
        if any(".base_layer." in name or ".lora_A." in name for name in _names(folder / part)):
            raise UsageError(
                f"{folder / part} was saved while a LoRA was loaded; load it where it was made, merge it by"
                " pipe.fuse_lora() and pipe.unload_lora_weights() (or leave it out by the latter alone), and save again"
            )


def _variant(folder: Path, parts: dict[str, Any]) -> str | None:
    """The variant (fp16, ...) of the weights, where some component has nothing else; None: plain files everywhere."""
    common: set[str] | None = None
    for part in parts:
        found = {variant_of(file.name) for file in (folder / part).glob(WEIGHTS)}
        if found and None not in found:
            own = {str(variant) for variant in found}
            common = own if common is None else common & own
    if common is None:
        return None
    if not common:
        raise UsageError(f"no one variant of the weights is complete in {folder}; download the plain files")
    chosen = min(common, key=lambda variant: (variant != "fp16", variant))
    warnings.warn(f"{folder} has its weights as the variant {chosen!r} alone, so that is loaded", stacklevel=3)
    return chosen


def _text_models(folder: Path, parts: dict[str, Any], dtype: torch.dtype, variant: str | None) -> dict[str, Any]:
    """The networks of transformers, which fills what its files lack with random numbers and goes on: here that is
    refused."""
    import transformers

    models = {}
    for name, kind in parts.items():
        known = getattr(transformers, kind[1], None) if kind[0] == "transformers" else None
        if not (isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)):
            continue
        network: Any = known
        own = {variant_of(file.name) for file in (folder / name).glob(WEIGHTS)}
        model, info = network.from_pretrained(
            folder / name,
            dtype=dtype,
            variant=variant if None not in own else None,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            raise _incomplete(folder / name, sorted(info["missing_keys"]))
        models[name] = model.eval()
    return models
