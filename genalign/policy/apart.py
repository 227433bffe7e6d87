"""Whether a language model keeps the rows of a left-padded batch apart while it writes: not all classes do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LONG, SHORT = 10, 4  # tokens of the two prompts
ROUNDING = 0.05  # of the spread of the logits: more than bfloat16 differs by, less than another row or padding moves


@torch.no_grad()
def keeps_rows_apart(model: Any, pad: int) -> bool:
    """Whether the first two tokens of two continuations have the same logits in a batch as alone.

    The second token is read from the cache. There MiniMax attends to padding where its first layer is a linear one, and
    RWKV, which has no mask either, mixes the rows (transformers 5.24).
    """
    vocabulary = len(model.get_input_embeddings().weight)
    prompts = torch.arange(LONG) % vocabulary, torch.arange(SHORT).flip(0) % vocabulary
    together = _logits(model, prompts, pad)
    alone = torch.cat([_logits(model, [prompt], pad) for prompt in prompts])
    return bool((together - alone).square().mean().sqrt() <= ROUNDING * alone.std())


def _logits(model: Any, prompts: Sequence[Tensor], pad: int) -> Tensor:
    """(R,2,V), with the padding that the longest prompt asks for."""
    device, width = next(model.parameters()).device, max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :], attention[row, width - len(prompt) :] = prompt, 1
    out = model.generate(
        input_ids=ids.to(device),
        attention_mask=attention.to(device),
        min_new_tokens=2,
        max_new_tokens=2,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits, 1).float()
