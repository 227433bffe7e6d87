"""The tokenizer of SumWorld: every word of it one token, every digit too, and any other text by its bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.sums import answer, question, sample_facts
from genalign.lab.text import learn_merges

LONGEST = 128
PAD, END, MASK, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|mask|>", "<|user|>", "<|assistant|>", "<|system|>"
PARTS = r" ?</?[a-z]+>| ?[A-Za-z]+| ?\d| ?[^A-Za-z\d ]| "
CHAT = (
    "{% for turn in messages %}{{ '<|' + turn['role'] + '|>' + turn['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def sums_tokenizer() -> Any:
    """A tokenizer with a chat template that AutoTokenizer loads; the same on every machine."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    parts = [pre_tokenizers.Split(Regex(PARTS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    split = pre_tokenizers.Sequence(parts)
    rng, words = np.random.default_rng(0), Counter[str]()
    for _ in range(5000):
        facts = sample_facts(rng, None)
        for text in (question(facts, rng), answer(facts)):
            words.update(word for word, _ in split.pre_tokenize_str(text) if len(word) > 1)
    merges = learn_merges(words, end="")
    special = [PAD, END, MASK, USER, ASSISTANT, SYSTEM]
    tokens = dict.fromkeys([*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)])
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    made.pre_tokenizer, made.decoder = split, decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        eos_token=END,
        mask_token=MASK,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT,
        model_max_length=LONGEST,
        padding_side="right",
    )


def encoded(tokenizer: Any, asked: str, said: str) -> tuple[list[int], list[int]]:
    """The tokens of a question as the chat template writes it, and of an answer with its end."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True, return_dict=False
    )
    return list(prompt), [*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def padded(rows: list[list[int]], filler: int) -> Tensor:
    """(R,L), filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
