"""Texts as a model reads them: whether they fit its context, and pooled hidden states of a language backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor


def too_long(tokenizer: Any, texts: Sequence[str], longest: int | None = None) -> list[bool]:
    """Which texts have more tokens, special ones included, than `longest` (None: than the tokenizer allows)."""
    most = tokenizer.model_max_length if longest is None else longest
    return [len(ids) > most for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []


def context(net: Any, tokenizer: Any) -> int:
    """The most tokens that a backbone and its tokenizer take."""
    return min(tokenizer.model_max_length, getattr(net.config, "max_position_embeddings", 1 << 20))


def hidden_states(net: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Last hidden states (R,T,H) in fp32, mask (R,T) and ids (R,T); texts are cut at the context, padded at their end.

    An empty text is one end-of-text.
    """
    end = tokenizer.eos_token_id or 0
    rows = tokenizer(list(texts), truncation=True, max_length=context(net, tokenizer))["input_ids"]
    tokens = [torch.tensor(row or [end], dtype=torch.long) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=end).to(net.device)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in tokens])[:, None]).long().to(net.device)
    return net(input_ids=ids, attention_mask=mask).last_hidden_state.float(), mask, ids


def pooled(hidden: Tensor, mask: Tensor, pool: Literal["mean", "last"]) -> Tensor:
    """(R,H) of hidden (R,T,H): the mean over mask (R,T), or what stands at its last place; either side may pad."""
    real = mask.bool()
    if pool == "mean":
        return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    # The last real token of each row: the place of the greatest number, where real ones are numbered from 1.
    place = (real * torch.arange(1, real.shape[1] + 1, device=real.device)).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), place]
