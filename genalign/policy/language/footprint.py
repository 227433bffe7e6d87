"""How many bytes a language model takes, without its weights: a network of shapes alone, run forwards and backwards.

Rows count as long as a prompt of 256 tokens and the longest completion; pictures count as none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genalign.files.places import is_gguf, model_file
from genalign.files.shipped import CONFIG
from genalign.policy import denoises_text, sees_or_hears
from genalign.policy.adapter import Adapter, read_elsewhere
from genalign.policy.footprint import computed_again
from genalign.policy.language.adapted import language_part
from genalign.policy.language.head import CHUNK
from genalign.policy.language.saving import layers_of
from genalign.policy.live import Live, fused_attention
from genalign.policy.meta_networks import bytes_of
from genalign.policy.quantize import check_gguf, layers_to_quantize
from genalign.policy.residence import modules_outside
from genalign.policy.settings import PolicySettings
from genalign.types import UsageError

PROMPT = 256  # tokens
HEAD = 3 * 4  # bytes a logit of a chunk: the logit, its power, and its gradient


class WriterFootprint:
    """The bytes of a language model under some settings.

    Raises UsageError where nothing is known about the model without downloading it, or it denoises.
    """

    def __init__(self, settings: PolicySettings, model: Path | str) -> None:
        if denoises_text(model):
            raise UsageError(f"{model} writes by denoising, whose memory --plan alone measures, in a step of it")
        self.settings, self.dtype = settings, getattr(torch, settings.dtype)
        self.config = _config(model)
        self._sees = sees_or_hears(self.config.model_type)

    def network(self) -> Any:
        """The model on "meta", in the dtype of its weights."""
        import transformers as hf

        kind = hf.AutoModelForImageTextToText if self._sees else hf.AutoModelForCausalLM
        with torch.device("meta"):
            made = kind.from_config(self.config, attn_implementation="sdpa", trust_remote_code=False)
        return nn.Module.to(made, self.dtype).requires_grad_(False).eval()

    def adapted(self) -> Any:
        network = self.network()
        Adapter(network, self.settings.lora, self._within(network))
        return network

    def _within(self, network: Any) -> str:
        return language_part(network) if self._sees else ""

    @functools.cached_property
    def trained(self) -> int:
        """How many numbers the adapter holds."""
        return sum(p.numel() for p in self.adapted().parameters() if p.requires_grad)

    def resident(self, settings: PolicySettings) -> int:
        """Bytes of frozen weights that are on the device together: with its layers offloaded, all else and the
        largest."""
        return self._resident(settings.quantization, settings.offload == "blocks")

    @functools.cache  # noqa: B019 (an object lives as long as a plan)
    def _resident(self, quantization: str | None, blocks: bool) -> int:
        network, seen = self.network(), set[int]()
        fewer = set[int]()
        if quantization is not None:
            head = network.get_output_embeddings()
            apart = {name for name, module in network.named_modules() if module is head} | {*read_elsewhere(network)}
            fewer = {id(layer) for layer in layers_to_quantize(network, self._within(network), apart)}
        layers = list(layers_of(network).values()) if blocks else []

        def size(module: nn.Module) -> int:
            return bytes_of(module, quantization if id(module) in fewer else None, seen)

        rest = sum(map(size, modules_outside(network, {id(layer) for layer in layers})))
        return rest + max((sum(map(size, layer.modules())) for layer in layers), default=0)

    def sampling(self, settings: PolicySettings) -> int | None:
        """Peak bytes of a forward pass without a graph, its cache among them; None where it cannot be tried."""
        one = self._row(False, False, settings.max_new_tokens)
        return None if one is None else settings.batch_size * one

    def learning(self, settings: PolicySettings) -> int | None:
        """Peak bytes of a forward and a backward pass, gradients of the adapter among them."""
        one, once = self._row(True, settings.gradient_checkpointing, settings.max_new_tokens), 4 * self.trained
        if one is None:
            return None
        logits = settings.batch_size * settings.max_new_tokens * self.config.get_text_config().vocab_size
        return once + settings.batch_size * (one - once) + HEAD * min(CHUNK, logits)

    @functools.cache  # noqa: B019
    def _row(self, graph: bool, again: bool, longest: int) -> int | None:
        network, seen = self.adapted(), list[Tensor]()

        def keep(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(given[0])
            return (given[0][:, :1], *given[1:])

        for layer in layers_of(network).values() if again else ():
            layer.forward = _again(layer.forward)
        network.get_output_embeddings().register_forward_pre_hook(keep)
        length = PROMPT + longest
        ids = torch.zeros(1, length, dtype=torch.long, device="meta")
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")  # made, no value of it is asked for
        try:
            with torch.set_grad_enabled(graph), fused_attention(), Live() as live:
                network(input_ids=ids, attention_mask=mask, use_cache=not graph)
                if graph:
                    seen[0].float().square().sum().backward()
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return None  # what looks at values, as routers of experts do
        return live.peak


def _again(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: computed_again(functools.partial(real, **kwargs), *args)


def _config(model: Path | str) -> Any:
    from transformers import AutoConfig

    if is_gguf(model):
        check_gguf(Path(model), "policy.model", "of a language model")
        return AutoConfig.from_pretrained(Path(model).parent, gguf_file=Path(model).name, trust_remote_code=False)
    file = model_file(model, CONFIG)
    try:
        return AutoConfig.from_pretrained(file.parent, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is no configuration of a language model: {str(error).splitlines()[0]}") from error
