"""Texts as a model reads them: whether they fit its context, and pooled hidden states of a language backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

TABLES = ("position_embeddings", "position_embedding", "positions_embed", "wpe", "embed_positions")  # of transformers
OTHER_TOWERS = ("vision", "visual", "image", "audio")  # whose positions are not those of tokens


def too_long(tokenizer: Any, texts: Sequence[str], longest: int) -> list[bool]:
    """Which texts have more tokens, special ones included, than `longest`."""
    return [len(ids) > longest for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []


def context(net: Any, tokenizer: Any = None) -> int:
    """The most tokens, special ones included, that a language backbone and its tokenizer take.

    The least of what the tokenizer states (many state none), of config's max_position_embeddings (n_positions of
    GPT-2, max_seq_len of MPT), and of the rows of a table of learned positions, less those that no token uses: RoBERTa
    counts from its padding_idx + 1 (514 rows are 512 tokens), BART and OPT from 2.
    """
    config = net.config.get_text_config()
    stated = [getattr(tokenizer, "model_max_length", None)]
    stated += [getattr(config, key, None) for key in ("max_position_embeddings", "max_seq_len")]
    limits = [1 << 20, *(int(limit) for limit in stated if limit)]
    for name, table in net.named_modules():
        elsewhere = any(tower in name for tower in OTHER_TOWERS)
        if elsewhere or name.rpartition(".")[2] not in TABLES or not isinstance(table, nn.Embedding):
            continue
        unused: Any = getattr(table, "offset", None)
        if unused is None:
            unused = 0 if table.padding_idx is None else table.padding_idx + 1
        limits.append(table.num_embeddings - unused)
    return min(limits)


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
