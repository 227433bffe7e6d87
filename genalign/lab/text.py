"""The lab's tokenizer: a CLIP byte-pair vocabulary learnt from EmojiWorld captions, every word one token."""

import json
from typing import Any

import numpy as np

from genalign.lab.world import caption, sample_facts

MAX_TOKENS = 24


def build_tokenizer() -> Any:
    """A transformers CLIPTokenizer; padding is the end token, as CLIP's is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    rng = np.random.default_rng(0)
    corpus = [caption(sample_facts(rng), rng) for _ in range(20_000)]
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=1024,
            min_frequency=2,
            end_of_word_suffix="</w>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            show_progress=False,
        ),
    )
    bpe = json.loads(learner.to_str())["model"]
    vocab = dict(bpe["vocab"])
    for symbol in pre_tokenizers.ByteLevel.alphabet():  # so that any text can be spelled
        vocab.setdefault(symbol, len(vocab))
        vocab.setdefault(symbol + "</w>", len(vocab))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in bpe["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
