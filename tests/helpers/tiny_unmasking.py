"""Diffusion language models of a few thousand random weights, as folders: masks in the text, and noise on a canvas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.helpers.tiny_language import WORDS

SPECIAL = ["<pad>", "<end>", "<mask>", "<unk>"]


def words(names: list[str] | None = None) -> Any:
    """A word-level tokenizer without a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *(WORDS if names is None else names)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "mask_token": "<mask>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def masked_model(vocabulary: int, seed: int = 0) -> Any:
    """A ModernBertForMaskedLM (width 32, 2 layers) whose logits have a spread that training can use."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(seed)
    config = ModernBertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        global_attn_every_n_layers=1,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        cls_token_id=1,
        sep_token_id=1,
    )
    return ModernBertForMaskedLM(config).eval()


def masked_pipeline(folder: Path, block_length: int = 8, names: list[str] | None = None, seed: int = 0) -> Path:
    """LLaDA2's pipeline of diffusers with that model."""
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    tokenizer = words(names)
    scheduler = BlockRefinementScheduler(block_length=block_length)
    LLaDA2Pipeline(masked_model(len(tokenizer), seed), scheduler, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")  # which save_pretrained of the pipeline leaves out
    return folder


def canvas_model(folder: Path, canvas: int = 4, seed: int = 0) -> Path:
    """A DiffusionGemmaForBlockDiffusion and its tokenizer."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    tokenizer = words()
    torch.manual_seed(seed)
    config = DiffusionGemmaConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "global_head_dim": 16,
            "num_global_key_value_heads": 1, "num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 16,
            "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"],
            "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1,
            "bos_token_id": 1,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "head_dim": 16, "patch_size": 4,
        },
        canvas_length=canvas,
        eos_token_id=1,
    )  # fmt: skip
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
