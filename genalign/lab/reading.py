"""Teach a text tower to read: six facts of a caption from the states of its tokens.

CLIP's contrastive loss leaves out of the token states what no image of the batch needs: a probe on the tower of
tiny-clip tells which of two objects is the left one no better than a coin. What a tower does not tell, no denoiser that
reads it can draw.
"""

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.lab.counting import mixed_facts
from genalign.lab.sprites import sprites
from genalign.lab.text import MAX_TOKENS
from genalign.lab.world import BACKGROUNDS, MAX_COUNT, Facts, caption, sample_facts
from genalign.training.fit import fit

ANSWERS = (len(sprites()), len(sprites()) + 1, MAX_COUNT + 1, MAX_COUNT + 1, 3, len(BACKGROUNDS) + 1)
NAMELESS = 0.35  # share of captions without a background
KEEP = 0.3  # weight of staying near the old states


class Reader(nn.Module):
    """One decoder layer whose six queries look at the token states (B, L, D); a linear head for each answer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(len(ANSWERS), width))
        self.layer = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.heads = nn.ModuleList([nn.Linear(width, answers) for answers in ANSWERS])

    def forward(self, states: Tensor) -> list[Tensor]:
        read = self.layer(self.queries.expand(len(states), -1, -1), states)
        return [head(read[:, k]) for k, head in enumerate(self.heads)]


def answers(facts: Facts) -> list[int]:
    """Right answers: first object, second object, their counts, relation, background; the last class of the second
    object and of the background, and 0 of the others, is "not stated"."""
    names, objects = list(sprites()), sorted(facts["objects"], key=lambda o: o["name"])
    word = 0
    if facts["relation"] is not None:
        _, relation, second = facts["relation"]
        objects = sorted(objects, key=lambda o: o["name"] == second)
        word = 1 if relation == "left of" else 2
    other = objects[1] if len(objects) > 1 else None
    background = facts["background"]
    return [
        names.index(objects[0]["name"]),
        names.index(other["name"]) if other else len(names),
        objects[0]["count"],
        other["count"] if other else 0,
        word,
        list(BACKGROUNDS).index(background) if background else len(BACKGROUNDS),
    ]


def captions(rng: np.random.Generator, rows: int, split: str) -> tuple[list[str], Tensor]:
    """Captions and their answers (rows, 6); of the training split a third is of mixed counts."""
    texts, right = [], []
    for _ in range(rows):
        facts = mixed_facts(rng) if split == "train" and rng.random() < 1 / 3 else sample_facts(rng, split)
        if rng.random() < NAMELESS:
            facts["background"] = None
        texts.append(caption(facts, rng))
        right.append(answers(facts))
    return texts, torch.tensor(right)


def token_ids(tokenizer: Any, texts: list[str]) -> Tensor:
    """Token ids (B, MAX_TOKENS), padded as the pipelines pad them."""
    encoded = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return cast("Tensor", encoded.input_ids)


def teach_reading(tower: Any, tokenizer: Any, work: Path, steps: int = 1600, rows: int = 64) -> float:
    """Train `tower` and a Reader of its next-to-last states, which the transformer reads, near the tower's old states;
    returns the share of held-out captions of which all six facts are read right."""
    old = copy.deepcopy(tower).requires_grad_(False)
    torch.manual_seed(13)
    both = nn.ModuleDict({"tower": tower.requires_grad_(True), "reader": Reader(tower.config.hidden_size)})

    def loss_of(step: int) -> Tensor:
        texts, right = captions(np.random.default_rng((13, step)), rows, "train")
        ids = token_ids(tokenizer, texts)
        now = tower(ids, output_hidden_states=True)
        with torch.no_grad():
            before = old(ids, output_hidden_states=True)
        kept = _distance(now.hidden_states[-2], before.hidden_states[-2]) + _distance(
            now.text_embeds, before.text_embeds
        )
        logits = both["reader"](now.hidden_states[-2])
        wrong = torch.stack([F.cross_entropy(row, right[:, k]) for k, row in enumerate(logits)]).sum()
        return wrong + KEEP * kept

    fit(both, loss_of, steps=steps, learning_rate=7e-4, state=work / "reading.safetensors", ema_decay=0.99)
    tower.eval().requires_grad_(False)
    return reading(tower, both["reader"], tokenizer)


@torch.no_grad()
def reading(tower: Any, reader: nn.Module, tokenizer: Any, rows: int = 1024) -> float:
    """Share of held-out captions of which the reader tells all six facts."""
    texts, right = captions(np.random.default_rng(14), rows, "heldout")
    logits = reader(tower(token_ids(tokenizer, texts), output_hidden_states=True).hidden_states[-2])
    read = torch.stack([row.argmax(dim=1) for row in logits], dim=1)
    return float((read == right).all(dim=1).float().mean())


def _distance(now: Tensor, before: Tensor) -> Tensor:
    return (now - before).square().mean() / before.var()
