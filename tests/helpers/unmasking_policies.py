"""Policies on the diffusion language models of tiny_unmasking.py, and their evidence bound by enumeration."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from genalign.policy import load_policy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.policy.unmasking.likelihood import hidden_places
from genalign.types import Prompt
from tests.helpers.tiny_unmasking import canvas_model, masked_pipeline

PROMPTS = [Prompt("a red star", uid=0), Prompt("two cats left of the dog please", uid=1)]
MAKERS = {"masks": masked_pipeline, "canvas": canvas_model}
FEW = ["star", "cat"]


@cache
def folder(kind: str) -> Path:
    return MAKERS[kind](Path(mkdtemp()))


@cache
def few_words(block_length: int = 8) -> Path:
    """A vocabulary of six, so that all answers can be counted."""
    return masked_pipeline(Path(mkdtemp()), block_length, FEW)


def policy(where: Path, moved: float = 0.0, **settings: Any) -> Any:
    """moved: how far the adapter is from its begin."""
    sampler = Sampler(**{"steps": 3, "noise": 0.5, **settings.pop("sampler", {})})
    given = {"max_new_tokens": 12, "batch_size": 3, "lora": Lora(rank=2), **settings}
    loaded = load_policy(PolicySettings(model=str(where), sampler=sampler, **given), where)
    generator = torch.Generator().manual_seed(1)
    for parameter in loaded.named_trainable().values():
        parameter.data += moved * torch.randn(parameter.shape, generator=generator)
    return loaded


def exact_bound(own: Any, prompt: Prompt, answer: list[int]) -> float:
    """The mean over all orders of writing one token after the other of the answer's log-probability."""
    ids, mask, total = list(own._encode([prompt])[0].ids), own.form.mask, 0.0
    orders = list(itertools.permutations(range(len(answer))))
    for order in orders:
        written = [mask] * len(answer)
        for place in order:
            with torch.no_grad():
                logits = own.model(input_ids=torch.tensor([ids + written])).logits[0, len(ids) + place].double()
            logits[mask] = -math.inf
            total += float(logits.log_softmax(-1)[answer[place]]) / len(orders)
            written[place] = answer[place]
    return total


def seed_of(places: tuple[int, ...], length: int) -> int:
    """A seed that masks just these places."""
    wanted = [i in places for i in range(length)]
    at = 1 - (len(places) - 0.5) / length
    return next(seed for seed in range(10_000) if hidden_places(length, length, at, seed).tolist() == wanted)


def expected_fit(own: Any, prompts: list[Prompt], clean: Tensor, versus: Any = None) -> tuple[Tensor, Tensor | None]:
    """The mean of `fit` over all shares of masks and all masks of that share."""
    length, scores, others = clean.shape[1], [], []
    for count in range(1, length + 1):
        sets = list(itertools.combinations(range(length), count))
        for places in sets:
            seeds = [seed_of(places, length)] * len(clean)
            with torch.no_grad():
                fitted = own.fit(prompts, clean, 1 - (count - 0.5) / length, seeds, versus)
            scores.append(fitted.score[:, 0].double() / len(sets) / length)
            others.append(None if versus is None else fitted.versus_score[:, 0].double() / len(sets) / length)
    return torch.stack(scores).sum(0), None if versus is None else torch.stack(others).sum(0)
