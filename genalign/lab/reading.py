"""Teach a text tower to read: the facts of a caption from the states of its tokens.

CLIP's contrastive loss leaves out of the token states what no image of the batch needs: a probe on the tower of
tiny-clip tells which of two objects is the left one no better than a coin. What a tower does not tell, no denoiser that
reads it can draw.
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
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
ENOUGH = 0.97  # of held-out captions read whole: what the tower does not tell, no denoiser draws
log = logging.getLogger("genalign.lab")


class Reader(nn.Module):
    """One decoder layer with a query for each question, which look at the token states (B, L, D), and a linear head
    for its answers."""

    def __init__(self, width: int, answers: tuple[int, ...] = ANSWERS) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(len(answers), width))
        self.layer = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.heads = nn.ModuleList([nn.Linear(width, count) for count in answers])

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


@dataclass(frozen=True)
class Questions:
    """What a tower is asked of the captions of a world: how many answers each question has, captions of a split
    ("train" or "heldout") with the right answers (rows, questions), and how many tokens a caption is padded to."""

    answers: tuple[int, ...]
    captions: Callable[[np.random.Generator, int, str], tuple[list[str], Tensor]]
    tokens: int


SCENES = Questions(ANSWERS, captions, MAX_TOKENS)


def token_ids(tokenizer: Any, texts: list[str], tokens: int = MAX_TOKENS) -> Tensor:
    """Token ids (B, tokens), padded as the pipelines pad them."""
    return cast("Tensor", encoded_texts(tokenizer, texts, tokens).input_ids)


def encoded_texts(tokenizer: Any, texts: list[str], tokens: int) -> Any:
    return tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")


def clip_states(tower: Any, tokenizer: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
    """What pipelines read of a CLIP text tower: its next-to-last states (B, L, D), and its embedding (B, E)."""
    read = tower(token_ids(tokenizer, texts, tokens), output_hidden_states=True)
    return read.hidden_states[-2], read.text_embeds


def t5_states(tower: Any, tokenizer: Any, texts: list[str], tokens: int) -> tuple[Tensor, ...]:
    """What pipelines of the Wan class read of a T5 tower: its last states (B, L, D), 0 where the text has ended."""
    encoded = encoded_texts(tokenizer, texts, tokens)
    states = tower(encoded.input_ids, encoded.attention_mask).last_hidden_state
    return (states * encoded.attention_mask[..., None],)


def new_tower(tokenizer: Any, tokens: int, seed: int, width: int = 128) -> Any:
    """An untrained UMT5EncoderModel, the class that pipelines of Wan and LongCat have, for texts of `tokens` tokens."""
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=3,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=tokens,
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


States = Callable[[Any, Any, list[str], int], tuple[Tensor, ...]]


def teach_reading(
    tower: Any,
    tokenizer: Any,
    work: Path,
    steps: int = 1600,
    rows: int = 64,
    questions: Questions = SCENES,
    states_of: States = clip_states,
    keep: float = KEEP,
) -> float:
    """Train `tower` and a Reader of its states, which a denoiser will read, near the tower's old states by the weight
    `keep` (0 for a new tower); returns the share of held-out captions of which every fact is read right."""
    old = copy.deepcopy(tower).requires_grad_(False)
    torch.manual_seed(13)
    reader = Reader(tower.config.hidden_size, questions.answers)
    both = nn.ModuleDict({"tower": tower.requires_grad_(True), "reader": reader})

    def loss_of(step: int) -> Tensor:
        texts, right = questions.captions(np.random.default_rng((13, step)), rows, "train")
        now = states_of(tower, tokenizer, texts, questions.tokens)
        logits = reader(now[0])
        wrong = torch.stack([F.cross_entropy(row, right[:, k]) for k, row in enumerate(logits)]).sum()
        if not keep:
            return wrong
        with torch.no_grad():
            before = states_of(old, tokenizer, texts, questions.tokens)
        kept = torch.stack([_distance(*states) for states in zip(now, before, strict=True)]).sum()
        return wrong + keep * kept

    fit(both, loss_of, steps=steps, learning_rate=7e-4, state=work / "reading.safetensors", ema_decay=0.99)
    tower.eval().requires_grad_(False)
    share = reading(tower, reader, tokenizer, questions=questions, states_of=states_of)
    if share < ENOUGH:
        log.warning(
            "the tower reads %.1f%% of held-out captions whole; give it more steps before a denoiser", 100 * share
        )
    return share


@torch.no_grad()
def reading(
    tower: Any,
    reader: nn.Module,
    tokenizer: Any,
    rows: int = 1024,
    questions: Questions = SCENES,
    states_of: States = clip_states,
) -> float:
    """Share of held-out captions of which the reader tells all facts."""
    texts, right = questions.captions(np.random.default_rng(14), rows, "heldout")
    logits = reader(states_of(tower, tokenizer, texts, questions.tokens)[0])
    read = torch.stack([row.argmax(dim=1) for row in logits], dim=1)
    return float((read == right).all(dim=1).float().mean())


def _distance(now: Tensor, before: Tensor) -> Tensor:
    return (now - before).square().mean() / before.var()
