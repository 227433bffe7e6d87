"""tiny-flow as a teacher: its pipeline frozen, and what its transformer predicts for noisy latents and texts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from genalign.files.shipped import shipped
from genalign.lab.text import MAX_TOKENS


def teacher() -> Any:
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(shipped("assets", "tiny-flow"), torch_dtype=torch.float32)
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
    return pipeline


def read(pipeline: Any, texts: list[str], zeros: int = 1) -> tuple[Tensor, Tensor]:
    """What the pipeline tells its transformer of texts: (B, 24 + zeros, 256), and pooled (B, 256).

    zeros: tokens of the missing T5; 1 is the pipeline's max_sequence_length=1.
    """
    tokens = pipeline.tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        encoded = pipeline.text_encoder(tokens.input_ids, output_hidden_states=True)
    context = encoded.hidden_states[-2].repeat(1, 1, 2)  # the pipeline has this tower twice
    blank = context.new_zeros(len(texts), zeros, context.shape[2])
    return torch.cat([context, blank], dim=1), encoded.text_embeds.repeat(1, 2)


def blank_like(empty: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The empty prompt with as many tokens as `text` has."""
    context = empty[0].new_zeros(1, text[0].shape[1], text[0].shape[2])
    context[:, :MAX_TOKENS] = empty[0][:, :MAX_TOKENS]
    return context, empty[1]


def velocity(net: Callable[..., Any], x: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
    """fp32 velocity (B, 4, 16, 16) at noise levels sigma (B,)."""
    # plain matrix products: the fused attention's backward pass is slow on a CPU
    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        out = net(
            x, timestep=sigma * 1000, encoder_hidden_states=text[0], pooled_projections=text[1], return_dict=False
        )[0]
    return out.float()


def guided(net: nn.Module, x: Tensor, sigma: Tensor, text: Any, empty: Any, scale: float) -> Tensor:
    both = (torch.cat([empty[0].expand_as(text[0]), text[0]]), torch.cat([empty[1].expand_as(text[1]), text[1]]))
    free, bound = velocity(net, x.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
    return free + scale * (bound - free)
