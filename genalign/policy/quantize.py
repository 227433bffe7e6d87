"""Frozen linear layers held in 8 or 4 bits by bitsandbytes or torchao, or read from a GGUF file by diffusers.

Of weights alone: where activations are quantised too, layers may answer without a graph, and an adapter below them is
moved in wrong directions by gradients that look whole. So one layer of each shape is tried as it is quantised, and its
input's gradient held against that of the layer as it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genalign.files.shipped import PIPELINE
from genalign.types import UsageError

COSINE = 0.99  # at least, of the gradient behind a quantised layer to the one behind the layer as it was
GGUF = b"GGUF"  # with which such a file begins
BITS = {"bitsandbytes-nf4": 4, "bitsandbytes-int8": 8}


def check_quantization(kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Try it on a small layer, before any weights load.

    Raises:
        UsageError: its package is missing, there is no kernel for this device, or no gradient comes through.
    """
    if kind.endswith(".gguf"):
        check_gguf(Path(kind), "policy.quantization", "of the same denoiser")
        return
    layer = nn.Linear(128, 128, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(_noise(128, 128))
        layer.bias.zero_()
    try:
        _try(kind, layer.to(device), quantized_layer(layer.to(device), kind))
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(
            f"policy.quantization {kind} needs a package that is missing ({_first(error)}); "
            f"pip install 'genalign[quantization]', or take another kind"
        ) from error
    except Exception as error:  # of whatever kernel is missing, in its own words
        raise UsageError(
            f"policy.quantization {kind} does not run on {device.type} in {_name(dtype)} ({_first(error)}); "
            f"take torchao-int8, or leave it out"
        ) from error


def quantize_layers(
    network: nn.Module, kind: str, device: torch.device, within: str = "", apart: Collection[str] = ()
) -> None:
    """Every linear layer of a network in place, one after the other on `device`; each comes back to where it was.

    Layers that diffusers and transformers keep in float32 stay as they are, as they do when these quantise.

    within: the name of the only part that is quantised; "" for all of it. apart: names of layers that are not.

    Raises:
        UsageError: a layer's gradient is not the one before, or there are no such layers.
    """
    tried: set[tuple[int, int]] = set()
    kept = {*(getattr(network, "_keep_in_fp32_modules", None) or ()), *apart}
    layers = list(_linear(network, kept, within))
    if not layers:
        raise UsageError(
            f"{type(network).__name__} has no linear layers of torch's own that policy.quantization could hold in"
            " fewer bits; leave it out"
        )
    for parent, name, layer in layers:
        home = layer.weight.device
        made = quantized_layer(layer.to(device), kind)
        shape = layer.in_features, layer.out_features
        if shape not in tried:
            tried.add(shape)
            _try(kind, layer, made)
        setattr(parent, name, made.to(home))
    if kind in BITS:
        setattr(network, f"is_loaded_in_{BITS[kind]}bit", True)  # by which peft knows what to make of the layers


def quantized_layer(layer: nn.Linear, kind: str) -> nn.Module:
    """The same layer with its weight quantised, on the same device; the given one stays as it is."""
    bias = layer.bias is not None
    frozen = layer.weight.detach()
    if kind in BITS:
        import bitsandbytes as bnb

        size = layer.in_features, layer.out_features
        made: Any
        if BITS[kind] == 4:
            made = bnb.nn.Linear4bit(*size, bias=bias, compute_dtype=frozen.dtype, quant_type="nf4", device="meta")
            made.weight = bnb.nn.Params4bit(frozen.cpu(), requires_grad=False, quant_type="nf4", module=made)
        else:
            made = bnb.nn.Linear8bitLt(*size, bias=bias, has_fp16_weights=False, device="meta")
            made.weight = bnb.nn.Int8Params(frozen.cpu(), requires_grad=False, has_fp16_weights=False)
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line each product
        made.support_avx512bf16_for_cpu = False  # in eval mode such a CPU would pack weights for forward passes alone
        made.bias = layer.bias
        return made.to(frozen.device).eval()
    from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    made = nn.Linear(layer.in_features, layer.out_features, bias=bias, device="meta")
    made.weight, made.bias = nn.Parameter(frozen.clone(), requires_grad=False), layer.bias
    configs = {
        "torchao-int8": Int8WeightOnlyConfig,
        "torchao-float8": Float8WeightOnlyConfig,
        "torchao-int4": Int4WeightOnlyConfig,
    }
    quantize_(made, configs[kind]())
    return made.requires_grad_(False).eval()


def read_gguf(file: Path, folder: Path, component: str, dtype: torch.dtype) -> nn.Module:
    """The denoiser of a GGUF file, in the form that the pipeline's folder says.

    Raises:
        UsageError: it holds another model, or diffusers reads no such file for this class.
    """
    import diffusers

    kind = json.loads((folder / PIPELINE).read_text(encoding="utf-8"))[component][1]
    network = getattr(diffusers, kind)
    if not hasattr(network, "from_single_file"):
        raise UsageError(f"diffusers reads no .gguf file for {kind}; take torchao-int8 or bitsandbytes-nf4")
    try:
        made: nn.Module = network.from_single_file(
            str(file),
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
            config=str(folder),
            subfolder=component,
            torch_dtype=dtype,
            local_files_only=True,
        )
    except Exception as error:  # diffusers raises whatever the first tensor runs into that does not fit
        raise UsageError(f"{file} is not a file of this model's {component} ({kind}): {_first(error)}") from error
    empty = [name for name, tensor in made.state_dict().items() if tensor.is_meta]
    if empty:
        raise UsageError(f"{file} is not a file of this model's {component} ({kind}): it lacks {empty[0]}")
    return made


def check_gguf(file: Path, key: str, whose: str) -> None:
    """Refuse a file that cannot be read, before any weights load.

    key: of the recipe, that names it. whose: what the file should be of.

    Raises:
        UsageError: the package that reads it is missing, or there is no such file.
    """
    try:
        import gguf  # noqa: F401 (diffusers and transformers read the file by it)
    except ImportError as error:
        raise UsageError(
            f"{key} {file.name} needs a package that is missing ({_first(error)}); pip install 'genalign[quantization]'"
        ) from error
    if not file.is_file():
        raise UsageError(f"{key}: there is no file {file}; check the path")
    with file.open("rb") as opened:
        if opened.read(len(GGUF)) != GGUF:
            raise UsageError(f"{key}: {file} is no GGUF file; give one {whose}")


def layers_to_quantize(network: nn.Module, within: str, apart: Collection[str]) -> list[nn.Linear]:
    """The layers that `quantize_layers` would replace."""
    kept = {*(getattr(network, "_keep_in_fp32_modules", None) or ()), *apart}
    return [layer for _, _, layer in _linear(network, kept, within)]


def _linear(network: nn.Module, kept: set[str], within: str) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name in it, layer). kept: names of layers, whole or in part, that stay as they are."""
    below = f"{within}." if within else ""
    for path, module in network.named_modules():
        for name, child in module.named_children():
            whole = f"{path}.{name}" if path else name
            if type(child) is nn.Linear and whole.startswith(below) and not kept & {whole, *whole.split(".")}:
                yield module, name, child


def _try(kind: str, layer: nn.Linear, made: nn.Module) -> None:
    """Hold the gradient behind the quantised layer against that behind the layer as it was."""
    rows, weight = _noise(4, layer.in_features), layer.weight
    found = []
    for each in (layer, made):
        x = rows.to(weight.device, weight.dtype).requires_grad_()
        with torch.enable_grad():
            out = each(x)
        if not out.requires_grad:
            raise UsageError(
                f"policy.quantization {kind} lets no gradient through its layers, so an adapter below them would learn"
                f" nothing; take torchao-int8 or torchao-float8"
            )
        toward = _noise(4, layer.out_features).to(out)
        found.append(torch.autograd.grad(out, x, toward)[0].flatten().double())
    cosine = float(nn.functional.cosine_similarity(found[0], found[1], dim=0))
    if not cosine >= COSINE:
        raise UsageError(
            f"policy.quantization {kind}: behind a layer of {layer.in_features} x {layer.out_features} the gradient has"
            f" a cosine of {cosine:.3f} to that of the layer as it was, below {COSINE}; take another kind"
        )


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
