"""The names under which ComfyUI finds the layers of a LoRA; under others it draws the base picture without an error.

ComfyUI registers names family by family (comfy/lora.py, comfy/utils.py). Those of diffusers' denoisers are known for
UNets, as kohya's trainers write them, and for the transformers of `TRANSFORMERS` behind "transformer.".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genalign.types import GenalignError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

PEFT_PREFIX = "base_model.model."
UNETS = ("UNet2DConditionModel",)
TRANSFORMERS = (
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "ErnieImageTransformer2DModel",
    "FluxTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "Krea2Transformer2DModel",
    "PixArtTransformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "ZImageTransformer2DModel",
)
FUSED = "Lumina2Transformer2DModel"  # known by the names of its first publication, where q, k and v are one layer
FUSED_NAMES = {
    r"\.attn\.to_out\.0$": ".attention.out",
    r"\.feed_forward\.linear_(\d)$": r".feed_forward.w\1",
}


@dataclass(frozen=True)
class Layer:
    """One adapted layer: W + scale B A, A (r,*in), B (out,*r)."""

    down: Tensor
    up: Tensor
    scale: float


def comfyui_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any], denoiser: str) -> dict[str, Tensor]:
    """The tensors of PEFT's adapter file under the names that ComfyUI knows, `<name>.alpha` beside each pair.

    tensors, config: adapter_model.safetensors and adapter_config.json. denoiser: class of the denoiser in diffusers.
    ComfyUI scales B A by alpha / rank, A1111 and kohya's scripts too.

    Raises:
        UsageError: ComfyUI knows no names for this denoiser.
        GenalignError: the adapter holds something else than pairs of LoRA matrices.
    """
    layers = read_layers(tensors, config)
    if denoiser in UNETS:
        named = {f"lora_unet_{name.replace('.', '_')}": layer for name, layer in layers.items()}
        return _written(named, down="lora_down", up="lora_up")
    if denoiser in TRANSFORMERS:
        return _written({f"transformer.{name}": layer for name, layer in layers.items()})
    if denoiser == FUSED:
        return _written({f"diffusion_model.{name}": layer for name, layer in _fused(layers).items()})
    known = ", ".join((*UNETS, *TRANSFORMERS, FUSED))
    raise UsageError(
        f"ComfyUI has no names for the layers of {denoiser}, so it would draw the base picture without an error; take "
        f"--to diffusers (known are {known})"
    )


def read_layers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Layer]:
    """The adapted layers by their names in diffusers, with the scale that PEFT computes them with.

    Raises:
        GenalignError: a tensor that is not half of a pair (DoRA's magnitude, an embedding, a bias).
    """
    layers = {}
    for key, tensor in tensors.items():
        name, _, half = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if half not in ("A.weight", "B.weight"):
            raise GenalignError(f"adapter key {key!r} is not a LoRA matrix, and ComfyUI's form has no place for it")
        if half == "B.weight":
            continue
        up = tensors.get(key.replace(".lora_A.", ".lora_B."))
        if up is None:
            raise GenalignError(f"adapter key {key!r} has no lora_B beside it; resume the run to write it again")
        rank = tensor.shape[0]
        alpha = float((config.get("alpha_pattern") or {}).get(name, config["lora_alpha"]))
        layers[name] = Layer(tensor, up, alpha / (rank**0.5 if config.get("use_rslora") else rank))
    return layers


def _fused(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Layers by Lumina 2's first names. q, k and v of a block become one layer of three times the rank.

    [Bq 0 0; 0 Bk 0; 0 0 Bv] [Aq; Ak; Av] stacks the three products, so nothing is approximated.
    """
    import torch

    renamed: dict[str, Layer] = {}
    for name, layer in layers.items():
        block, _, projection = name.rpartition(".attn.")
        if projection in ("to_q", "to_k", "to_v"):
            if projection != "to_q":
                continue
            try:
                q, k, v = (layers[f"{block}.attn.to_{letter}"] for letter in "qkv")
            except KeyError as error:
                raise UsageError(
                    f"ComfyUI holds to_q, to_k and to_v of {FUSED} as one layer, but only some of them are adapted "
                    f"({error.args[0]} is not); adapt all three, or take --to diffusers"
                ) from error
            ups = [part.scale * part.up for part in (q, k, v)]
            renamed[f"{block}.attention.qkv"] = Layer(
                torch.cat([part.down for part in (q, k, v)]), torch.block_diag(*ups), 1.0
            )
            continue
        for pattern, known in FUSED_NAMES.items():
            name = re.sub(pattern, known, name)
        renamed[name] = layer
    return renamed


def _written(layers: Mapping[str, Layer], down: str = "lora_A", up: str = "lora_B") -> dict[str, Tensor]:
    import torch

    written: dict[str, Tensor] = {}
    for name, layer in layers.items():
        written[f"{name}.{down}.weight"] = layer.down.contiguous()
        written[f"{name}.{up}.weight"] = layer.up.contiguous()
        written[f"{name}.alpha"] = torch.tensor(layer.scale * layer.down.shape[0])
    return written
