"""A language model of a few thousand random weights and thirty words, made in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

NOUNS = ["star", "sun", "cat", "dog", "car", "me"]
OTHERS = [
    "a",
    "the",
    "one",
    "two",
    "three",
    "red",
    "green",
    "blue",
    "left",
    "right",
    "above",
    "below",
    "of",
    "on",
    "and",
]
WORDS = [*NOUNS, *OTHERS, "is", "not", "how", "many", "draw", "please", "yes", "no", "hello"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}yes{% endif %}"
)


def tiny_language(seed: int = 0, chat: bool = False) -> tuple[Any, Any]:
    """A LlamaForCausalLM (width 32, 2 layers) and a word-level tokenizer; the same seed gives the same weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS, "user", "system"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = CHAT if chat else None
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        initializer_range=0.25,  # logits of a spread that training can use; 0.02 would leave them all alike
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def save_tiny_language(folder: Path, seed: int = 0) -> Path:
    model, tokenizer = tiny_language(seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
