"""A LoRA adapter inside a frozen network, and switching between the weights it can compute with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genalign.policy.settings import Lora
from genalign.types import GenalignError, UsageError, Weights

# How the linear layers of attention are named by diffusers, and by transformers. A network of the one kind may hold
# layers of the other's names that are not attention of its own: poolers, whose weights are read and never called.
ATTENTION = (
    ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
)


class Adapter:
    """LoRA (Hu et al. 2021) injected by peft into `model`, whose own weights are frozen; B starts at zero.

    A is drawn from a fixed seed, so that every rank starts from the same adapter.
    Parameters are held in float32 where the base is in half precision, and multiply in the precision of what they are
    given, as autocast would have it. "reference" computes without the adapter,
    bit-equal to the base and without a second copy; "ema" lends the averaged parameters to the model. Switching leaves
    requires_grad alone (peft's own switch does not).

    within: the name of the only part of the model that is adapted; "" for all of it. device: where the adapter stays;
    None: where peft makes it, beside the layer.

    Raises UsageError where no layer matches the targets, or the model holds a LoRA or fused projections already.
    """

    def __init__(self, model: nn.Module, settings: Lora, within: str = "", device: torch.device | None = None) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        from genalign.policy.lora import as_one_sum

        self.model = model
        _check_bare(model, LoraLayer)
        self.config = LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, target_modules=_targets(model, settings, within)
        )
        model.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inject_adapter_in_model(self.config, model)
        self.config.target_modules = sorted(self.config.target_modules)  # a set, which each process writes otherwise
        model.eval()
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype.itemsize < 4:
                parameter.data = parameter.data.float()
            if parameter.requires_grad and device is not None:
                parameter.data = parameter.data.to(device)
        for layer in self._layers:
            layer.cast_input_dtype_enabled = False
            as_one_sum(layer)
            for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                if isinstance(part, nn.Linear):
                    part.__class__ = _LinearInPrecisionOfInput
        self._trainable = {
            name.replace(".default", ""): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._average = {name: parameter.detach().clone() for name, parameter in self._trainable.items()}

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters, named `<layer>.lora_A.weight`; inside weights("ema") they hold the averaged values."""
        return dict(self._trainable)

    @contextmanager
    def weights(self, which: Weights) -> Iterator[None]:
        if which == "reference":
            before = [layer._disable_adapters for layer in self._layers]
            for layer in self._layers:
                layer._disable_adapters = True
            try:
                yield
            finally:
                for layer, flag in zip(self._layers, before, strict=True):
                    layer._disable_adapters = flag
        elif which == "ema":
            self._swap()
            try:
                yield
            finally:
                self._swap()
        else:
            yield

    def _swap(self) -> None:
        for name, parameter in self._trainable.items():
            parameter.data, self._average[name] = self._average[name], parameter.data

    @torch.no_grad()
    def step_ema(self, decay: float) -> None:
        for name, parameter in self._trainable.items():
            self._average[name].lerp_(parameter, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's tensors, contiguous and on the CPU."""
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self._trainable.items()}

    def folded(self) -> dict[str, Tensor]:
        """The same with alpha / rank in B, so that alpha is the rank: W + B A, for readers of tensors alone."""
        scale = self.config.lora_alpha / self.config.r
        return {name: scale * p if ".lora_B." in name else p for name, p in self.state_dict().items()}

    def save(self, folder: Path) -> None:
        """adapter_config.json and adapter_model.safetensors, as PeftModel.from_pretrained reads them."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(folder)
        tensors = {f"base_model.model.{name}": tensor for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises UsageError where the file is missing or belongs to other layers, GenalignError where it is corrupt.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = folder / "adapter_model.safetensors"
        if not file.is_file():
            raise UsageError(f"there is no adapter at {file}; give the adapter/ folder of a finished run")
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise GenalignError(f"{file} is corrupt ({error}); copy it again or export it from a checkpoint") from error
        found = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
        wanted = {name: tuple(parameter.shape) for name, parameter in self._trainable.items()}
        if {name: tuple(tensor.shape) for name, tensor in found.items()} != wanted:
            raise UsageError(f"{file} belongs to another model or policy.lora; use the recipe it was trained by")
        alpha = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("lora_alpha")
        if alpha != self.config.lora_alpha:
            raise UsageError(
                f"{file} was trained with policy.lora.alpha={alpha}; set that instead of {self.config.lora_alpha}"
            )
        for name, parameter in self._trainable.items():
            parameter.copy_(found[name])


def _check_bare(model: nn.Module, adapter: type) -> None:
    """peft would switch an adapter that is there off, or train on it in the place of a new one; fused layers skip both.

    Raises:
        UsageError: naming the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, adapter):
            raise UsageError(
                f"the model holds a LoRA already (at {name}), which training would switch off or overwrite; merge it "
                f"by fuse_lora and unload_lora_weights, or unload it"
            )
        # The older attention modules stay marked once they are unfused; there the processor tells.
        fused = hasattr(module, "unfuse_projections") or "Fused" in type(getattr(module, "processor", None)).__name__
        if getattr(module, "fused_projections", False) and fused:
            raise UsageError(
                f"{name or 'the model'} has fused attention projections, which skip an adapter; call "
                f"unfuse_qkv_projections first"
            )


class _LinearInPrecisionOfInput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


def _inside_attention(model: nn.Module) -> list[str]:
    """The linear layers that stand directly in a module of attention, whatever their names: projections that are fused
    (to_qkv_mlp_proj), or called otherwise."""
    found = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if "Attention" in kind and not any(other in kind for other in ("Block", "Pool")):  # (of which it is a part)
            found += [f"{name}.{leaf}" for leaf, part in module.named_children() if isinstance(part, nn.Linear)]
    return found


def _targets(model: nn.Module, settings: Lora, within: str) -> list[str]:
    from transformers.pytorch_utils import Conv1D

    head: Any = getattr(model, "get_output_embeddings", None)  # of a language model; peft leaves it alone, too
    output = head() if head is not None else None
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and name.startswith(_below(within))
    ]

    def matching(target: str) -> list[str]:
        return [name for name in linear if name == target or name.endswith(f".{target}")]

    if settings.targets == "all-linear":
        return [name for name in linear if name.rpartition(".")[2] not in read_elsewhere(model)]
    if settings.targets is None:
        found: list[str] = []
        for names in ATTENTION:
            found = found or [name for name in names if matching(name)]
        inside = [name for name in _inside_attention(model) if not name.endswith(tuple(f".{known}" for known in found))]
        inside = [name for name in inside if name.startswith(_below(within))]
        if found or inside:
            return (found if not within else _full_names(found, matching)) + inside
        raise UsageError("no attention projection was found by name; list the layers under policy.lora.targets")
    missing = [target for target in settings.targets if not matching(target)]
    if missing or not settings.targets:
        raise UsageError(
            f"policy.lora.targets: {missing[0]!r} is not a linear layer of the model{' in ' + within if within else ''}"
            if missing
            else "policy.lora.targets is empty; leave it out to adapt every attention projection"
        )
    return settings.targets if not within else _full_names(settings.targets, matching)


def read_elsewhere(model: Any) -> tuple[str, ...]:
    """Layers whose weight the fused kernels of state-space models read by themselves; peft refuses to adapt them."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    return ("out_proj",) if "mamba" in kind or kind in ("falcon_h1", "nemotron_h") else ()


def _below(part: str) -> str:
    return f"{part}." if part else ""


def _full_names(targets: Sequence[str], matching: Callable[[str], list[str]]) -> list[str]:
    """Those that an end of a name would find elsewhere too."""
    return sorted({name for target in targets for name in matching(target)})
