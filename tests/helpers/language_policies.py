"""Policies on the language models of the sweep, and what they are asked; each is rolled out once a process."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import Media, Prompt, Track, Trajectory
from tests.helpers.tiny_readers import READERS
from tests.helpers.tiny_writers import WRITERS

ALL = {**{name: reader.build for name, reader in READERS.items()}, **WRITERS}
TEMPERATURE = 0.8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


TEXTS = [Prompt("how many star", uid=0), Prompt("hello", uid=1), Prompt("is the red car left of a blue sun", uid=2)]
PICTURES = [
    Prompt("how many star", Media(image=Track(noise(1, 3, 20, 20))), uid=0),
    Prompt("is the red car left of a blue sun", uid=1),
    Prompt("draw", Media(image=Track([noise(3, 20, 20, seed=1), noise(3, 16, 24, seed=2)])), uid=2),
]
CLIPS = [Prompt("how many cat", Media(video=Track(noise(1, 4, 3, 20, 20), 2.0)), uid=0), TEXTS[1]]
SOUNDS = [Prompt("how many dog", Media(audio=Track(2 * noise(1, 2, 8000) - 1, 16000.0)), uid=0), TEXTS[1]]
ASKED = {"image": PICTURES, "video": CLIPS, "audio": SOUNDS}


def policy(name: str, batch_size: int = 16, side: str = "right", **keys: Any) -> LanguagePolicy:
    model, reader = ALL[name]()
    if name == "mamba2":
        keys = {"lora": Lora(rank=4, targets="all-linear"), **keys}  # it has no attention
    getattr(reader, "tokenizer", reader).padding_side = side
    chosen = {"model": "tiny", "lora": Lora(rank=4), "max_new_tokens": 6, "temperature": TEMPERATURE, **keys}
    return LanguagePolicy(model, reader, PolicySettings(batch_size=batch_size, **chosen))


def asked(medium: str) -> list[Prompt]:
    return ASKED.get(medium, TEXTS)


@cache
def rolled(name: str, medium: str) -> tuple[LanguagePolicy, Trajectory]:
    """Shared by tests, which leave the weights as they found them."""
    of = policy(name)
    return of, of.rollout(asked(medium), 3, 5)
