"""tiny-text-head: a small encoder with a learned reward head, for the text side of the hybrid reward."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.files.header import sort_header
from genalign.lab.text import MAX_TOKENS, build_tokenizer
from genalign.lab.world import caption, sample_facts
from genalign.training.fit import fit

WIDTH = 64


def garble(text: str, rng: np.random.Generator) -> str:
    """The same words in another order, or with a third of them taken from another caption."""
    words = text.split()
    if rng.random() < 0.5:
        return " ".join(rng.permutation(words))
    others = caption(sample_facts(rng), rng).split()
    return " ".join(str(rng.choice(others)) if rng.random() < 0.34 else word for word in words)


def captions(rng: np.random.Generator, rows: int) -> tuple[list[str], Tensor]:
    """`rows` captions, half of them garbled, and (rows,) labels: 1 for a caption as EmojiWorld writes it."""
    true = [caption(sample_facts(rng, "train"), rng) for _ in range(rows)]
    label = torch.arange(rows) % 2 == 0
    return [t if keep else garble(t, rng) for t, keep in zip(true, label.tolist(), strict=True)], label.float()


def build_preferences(folder: Path, rows: int = 60, seed: int = 15) -> None:
    """Write captions.jsonl for `genalign eval-reward`: held-out captions, each preferred to the same one garbled."""
    rng, lines = np.random.default_rng(seed), list[str]()
    while len(lines) < rows:
        true = caption(sample_facts(rng, "heldout"), rng)
        if (wrong := garble(true, rng)) != true:
            lines.append(
                json.dumps({"prompt": f"Describe scene {len(lines)}.", "chosen": true, "rejected": wrong}) + "\n"
            )
    (folder / "captions.jsonl").write_text("".join(lines))


def build_text_head(work: Path, steps: int = 800, rows: int = 64, seed: int = 13) -> tuple[Any, nn.Linear, Any]:
    """Train backbone and head together by cross-entropy on whether a caption is whole."""
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=WIDTH,
        n_layers=2,
        n_heads=4,
        hidden_dim=2 * WIDTH,
        max_position_embeddings=2 * MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        dropout=0.0,
        attention_dropout=0.0,
    )
    backbone, head = DistilBertModel(config), nn.Linear(WIDTH, 1)
    both = nn.ModuleDict({"backbone": backbone, "head": head})

    def loss_of(step: int) -> Tensor:
        texts, label = captions(np.random.default_rng((seed, step)), rows)
        return F.binary_cross_entropy_with_logits(head_logits(both, tokenizer, texts), label)

    fit(both, loss_of, steps=steps, learning_rate=2e-3, state=work / "text-head.safetensors", ema_decay=0.99)
    return backbone, head, tokenizer


def head_logits(both: nn.ModuleDict, tokenizer: Any, texts: list[str]) -> Tensor:
    """(B,) logits from the mean over real tokens, the pooling that the reward head uses."""
    ids = [torch.tensor(row) for row in tokenizer(texts)["input_ids"]]
    tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in ids])[:, None]
    hidden = both["backbone"](input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return both["head"](pooled)[:, 0]


def save_text_head(backbone: Any, head: nn.Linear, tokenizer: Any, folder: Path) -> None:
    """Write the folder that `HeadReward` loads: an AutoModel, its tokenizer, and head.safetensors."""
    backbone.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {"aspects": '["fluency"]', "pool": "mean", "readout": "sigmoid", "template": "{text}"}
    weights = {"weight": head.weight.detach().contiguous(), "bias": head.bias.detach().contiguous()}
    save_file(weights, folder / "head.safetensors", metadata=settings)
    sort_header(folder / "head.safetensors")


def text_head_accuracy(reward_of: Callable[[list[str]], Tensor], count: int = 2000, seed: int = 14) -> float:
    """Share of captions classified right against garbled ones at 0.5; `reward_of` maps texts to (B,) in [0, 1]."""
    texts, label = captions(np.random.default_rng(seed), count)
    return float(((reward_of(texts) > 0.5) == (label > 0.5)).float().mean())
