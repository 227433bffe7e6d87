"""Tiny random models and plain rewards for the tests of genalign.reward."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from genalign.reward import FunctionReward, save_head
from genalign.types import Media, Prompt, Track


def prompts(rows: int, **facts: Sequence[Any]) -> list[Prompt]:
    told = [{key: column[i] for key, column in facts.items()} for i in range(rows)]
    return [Prompt(f"prompt number {i}", facts=told[i], uid=i) for i in range(rows)]


def images(rows: int, size: int = 24, seed: int = 0) -> Media:
    return Media(image=Track(torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))))


def texts(*rows: str) -> Media:
    return Media(text=Track(list(rows)))


def says(*rows: Any, name: str = "says", needs: Sequence[str] = ()) -> FunctionReward:
    """A reward that scores the row of prompt uid i with `rows[i]`: a number, None, or (score, confidence)."""

    def told(media: Media, facts: list[Any]) -> list[Any]:
        return [rows[fact["row"]] for fact in facts]

    return FunctionReward(told, name=name, needs=needs)


def table(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random scores in [0.1, 0.9], (rows, columns)."""
    return 0.1 + 0.8 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def tiny_clip(folder: Path, interpolation: str = "bicubic", resize_mode: str = "shortest") -> Path:
    """A random CLIP of 32-pixel images in the layout that open_clip loads with local-dir:."""
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    preprocess |= {"interpolation": interpolation, "resize_mode": resize_mode}
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def tiny_text_head(folder: Path, aspects: Sequence[str] = ("fluency",), **settings: Any) -> Path:
    """A random two-layer language backbone of whole words, and a random head on it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    words = ["[unk]", "[pad]", "a", "two", "cat", "cats", "star", "stars", "and", "the", "prompt", "number", "0", "1"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unk]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(1)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=len(words), max_position_embeddings=12, **size)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[unk]", pad_token="[pad]").save_pretrained(folder)
    save_head(folder, torch.randn(len(aspects), 16), torch.randn(len(aspects)), aspects, **settings)
    return folder
