"""tiny-flow as a teacher: its pipeline frozen; and what a flow transformer predicts for noisy latents and texts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genalign.files.shipped import shipped
from genalign.lab.text import MAX_TOKENS
from genalign.precision import autocast

Text = dict[str, Tensor]  # what a pipeline gives its transformer of texts, by the argument's name


def teacher() -> Any:
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(shipped("assets", "tiny-flow"), torch_dtype=torch.float32)
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
    return pipeline


def read(pipeline: Any, texts: list[str], zeros: int = 1) -> Text:
    """What tiny-flow's pipeline gives its transformer of texts: (B, 24 + zeros, 256), and pooled (B, 256).

    zeros: tokens of the missing T5; 1 is the pipeline's max_sequence_length=1.
    """
    tokens = pipeline.tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        encoded = pipeline.text_encoder(tokens.input_ids, output_hidden_states=True)
    context = encoded.hidden_states[-2].repeat(1, 1, 2)  # the pipeline has this tower twice
    blank = context.new_zeros(len(texts), zeros, context.shape[2])
    return {
        "encoder_hidden_states": torch.cat([context, blank], dim=1),
        "pooled_projections": encoded.text_embeds.repeat(1, 2),
    }


def blank_like(empty: Text, text: Text) -> Text:
    """The empty prompt with as many tokens as `text` has."""
    states = empty["encoder_hidden_states"]
    context = states.new_zeros(1, *text["encoder_hidden_states"].shape[1:])
    context[:, :MAX_TOKENS] = states[:, :MAX_TOKENS]
    return {**empty, "encoder_hidden_states": context}


def velocity(net: Callable[..., Any], x: Tensor, sigma: Tensor, text: Text, times: float = 1000.0) -> Tensor:
    """fp32 velocity, of the shape of x, at noise levels sigma (B,); the network is given `times` sigma."""
    # plain matrix products: the fused attention's backward pass is slow on a CPU
    with autocast(), sdpa_kernel(SDPBackend.MATH):
        out = net(x, timestep=sigma * times, **text, return_dict=False)[0]
    return out.float()


def guided(
    net: nn.Module, x: Tensor, sigma: Tensor, text: Text, empty: Text, scale: float, times: float = 1000.0
) -> Tensor:
    both = {name: torch.cat([empty[name].expand_as(bound), bound]) for name, bound in text.items()}
    free, bound = velocity(net, torch.cat([x, x]), sigma.repeat(2), both, times).chunk(2)
    return free + scale * (bound - free)
