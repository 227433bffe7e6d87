"""The lab's tokenizer: a CLIP byte-pair vocabulary learnt from EmojiWorld captions, every word one token."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from genalign.files.shipped import shipped
from genalign.lab.world import caption, sample_facts

MAX_TOKENS = 24
END = "</w>"


def scene_caption(rng: np.random.Generator) -> str:
    return caption(sample_facts(rng), rng)


def build_tokenizer(
    sentence: Callable[[np.random.Generator], str] = scene_caption, length: int = MAX_TOKENS, count: int = 20_000
) -> Any:
    """A transformers CLIPTokenizer of the words of `count` such sentences, for texts of `length` tokens; padding is the
    end token, as CLIP's is. The same on every machine."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    rng = np.random.default_rng(0)
    words = Counter(word for _ in range(count) for word in sentence(rng).split())
    merges = learn_merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # so that any text can be spelled
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(c + END for c in alphabet), *map("".join, merges)]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def learn_merges(words: Counter[str], end: str = END) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016, arXiv 1508.07909, algorithm 1) until every word is one token; `end` marks
    the last letter of a word.

    Our own few lines, because the tokenizers library breaks ties by a hash that differs from process to process: two
    runs of a builder would not agree on what token 261 is.
    """
    spelled = {word: (*word[:-1], word[-1] + end) for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = {word: _merge(parts, best) for word, parts in spelled.items()}


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)


def shipped_tokenizer() -> Any:
    """The tokenizer of tiny-clip, which the image models share with its text tower."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(shipped("assets", "tiny-clip"))
