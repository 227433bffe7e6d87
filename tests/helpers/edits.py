"""Policies on the pipelines that draw from a text and an image."""

from __future__ import annotations

import functools

import torch

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import Media, Prompt, Track, Trajectory
from tests.helpers.tiny_pipelines import EDIT, MORE

PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
TEXTS = ("a b", "c d e", "x")


def asking(text: str, picture: torch.Tensor, uid: int = 0) -> Prompt:
    return Prompt(text, media=Media(image=Track(picture[None])), uid=uid)


PROMPTS = [asking(text, picture, uid) for uid, (text, picture) in enumerate(zip(TEXTS, PIXELS, strict=True))]


def made(name: str, **change) -> DiffusionPolicy:
    family = {**EDIT, **MORE}[name]
    flow = Sampler(steps=4, kernel="flow-sde")
    preserving = Sampler(steps=8, kernel="ddim", window=3, window_start=(2, 3))
    settings = PolicySettings(
        model=name,
        call=family.call,
        sampler=flow if family.flow else preserving,
        lora=Lora(rank=2, alpha=4),
        **{"batch_size": 4, **change},
    )
    return DiffusionPolicy(family.build(), settings)


@functools.cache
def rolled(name: str) -> tuple[DiffusionPolicy, Trajectory]:
    of = made(name)
    return of, of.rollout(PROMPTS, 2, seed=0)
