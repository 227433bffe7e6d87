"""Networks of shapes alone, made from their configurations on torch's "meta" device; their bytes and their scales."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genalign.files.places import model_file, pipeline_class
from genalign.files.shipped import CONFIG, PIPELINE
from genalign.policy.bases import Part, bases
from genalign.types import GenalignError, UsageError

# Bytes a weight of a linear layer: codes, and their scales (of 64 weights each in nf4, of 128 in int4, of 32 in GGUF's
# usual Q4_K_S of 4.5 bits; of a whole row elsewhere).
PER_WEIGHT = {
    "bitsandbytes-nf4": 0.5 + 4 / 64,
    "bitsandbytes-int8": 1.0,
    "torchao-int8": 1.0,
    "torchao-float8": 1.0,
    "torchao-int4": 0.5 + 4 / 128,
    ".gguf": 4.5 / 8,
}
PER_ROW = 4  # bytes of a row's scale


def parts_of(model: Path | str) -> dict[str, Part]:
    """A pipeline's networks by component, from the table of published bases or its own small files.

    Raises:
        UsageError: neither there nor here.
    """
    if isinstance(model, str) and model in bases():
        return dict(bases()[model].parts)
    try:
        if isinstance(model, Path) and pipeline_class(model) is None:
            raise UsageError(f"{model} is a language model; memory is predicted of models that draw")
        index = json.loads(model_file(model, PIPELINE).read_text(encoding="utf-8"))
        found = {}
        for name, kind in index.items():
            if isinstance(kind, list) and kind[0] in ("diffusers", "transformers") and "Scheduler" not in str(kind[1]):
                if kind[0] == "transformers" and not _is_network(kind[1]):
                    continue
                config = json.loads(model_file(model, f"{name}/{CONFIG}").read_text(encoding="utf-8"))
                found[name] = Part(kind[1], config, library=kind[0])
        return found
    except UsageError:
        raise
    except GenalignError as error:
        raise UsageError(
            f"the sizes of {model} are not known without its files ({error}); known are {', '.join(bases())}"
        ) from error


def _is_network(kind: str) -> bool:
    import transformers

    known = getattr(transformers, kind, None)
    return isinstance(known, type) and issubclass(known, transformers.PreTrainedModel)


def on_meta(part: Part, dtype: torch.dtype) -> Any:
    if part.config is None:
        return None
    with torch.device("meta"), _quietly():
        if part.library == "transformers":
            import transformers

            kind = getattr(transformers, part.kind)
            made = kind(kind.config_class.from_dict(dict(part.config)))
        else:
            import diffusers

            made = getattr(diffusers, part.kind).from_config(dict(part.config))
        # A network's own `to` warns of modules that it keeps in float32 when it loads.
        return nn.Module.to(made, dtype).requires_grad_(False).eval()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without diffusers' lines about keys of a configuration, which are said when the model is loaded."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def bytes_of(module: nn.Module, kind: str | None, seen: set[int]) -> int:
    """Of a module's own frozen tensors, those of its children left out, and each that modules share once."""
    own = [x for x in (*module._parameters.values(), *module._buffers.values()) if x is not None and id(x) not in seen]
    seen.update(map(id, own))
    whole = sum(x.numel() * x.element_size() for x in own)
    if kind is None or type(module) is not nn.Linear or not own:
        return whole
    weight = module.weight
    per = next(size for end, size in PER_WEIGHT.items() if kind.endswith(end))
    scales = PER_ROW * len(weight) if per == 1.0 else 0
    return whole - weight.numel() * weight.element_size() + round(per * weight.numel()) + scales


def pixels_per_latent(vae: Any) -> int:
    """Pixels of a side that one latent stands for."""
    config = vae.config
    for name in ("scale_factor_spatial", "spatial_compression_ratio"):
        if config.get(name):
            return int(config[name])
    if config.get("temperal_downsample") is not None:
        return int(2 ** len(config.temperal_downsample))
    if config.get("block_out_channels") is not None:
        return int(2 ** (len(config.block_out_channels) - 1))
    with torch.no_grad():  # of whatever form: by what it makes of a few latents
        z = torch.empty(1, config.latent_channels, 8, 8, dtype=vae.dtype, device="meta")
        return int(vae.decode(z, return_dict=False)[0].shape[-1]) // 8


def is_video(vae: Any) -> bool:
    return any(isinstance(module, nn.Conv3d) for module in vae.modules())


def latent_frames(vae: Any, frames: int) -> int:
    config = vae.config
    ratio = config.get("scale_factor_temporal") or config.get("temporal_compression_ratio")
    if not ratio and config.get("temperal_downsample") is not None:
        ratio = 2 ** sum(config.temperal_downsample)
    return (frames - 1) // int(ratio) + 1 if ratio else frames
