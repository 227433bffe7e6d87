"""Policies on the pipelines that make sound."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import Media, Prompt, Track, Trajectory, UsageError
from tests.helpers.diffusion import PROMPTS
from tests.helpers.tiny_sounds import RESOUNDING, SILENT, SOUND_RATE, SOUNDS

HEARD = {**SOUNDS, **RESOUNDING}
FORM = {"ace-step": (2, 3200)}  # channels and samples of what is drawn; of all others (1, 160)
WAVES = torch.rand(3, 1, 1, 160, generator=torch.Generator().manual_seed(1)) * 2 - 1  # a sound (1,1,160) of each prompt


def prompts(name: str) -> list[Prompt]:
    if name in SOUNDS:
        return PROMPTS[:2]
    brought = [Media(audio=Track(wave, SOUND_RATE)) for wave in WAVES[:2]]
    return [replace(prompt, media=media) for prompt, media in zip(PROMPTS[:2], brought, strict=True)]


def settings(name: str, **more: Any) -> PolicySettings:
    steps: dict[str, Any] = {"steps": 4, "kernel": "cps"}
    if not HEARD[name].flow:
        steps = {"steps": 5, "kernel": "ddim", "window": 3, "window_start": (1, 2)}
    sampler = Sampler(**{**steps, **more.pop("sampler", {})})
    lora = Lora(rank=2, alpha=4)
    call = {**HEARD[name].call, **more.pop("call", {})}
    return PolicySettings(model=name, call=call, sampler=sampler, lora=lora, **{"batch_size": 2, **more})


def made(name: str, **more: Any) -> DiffusionPolicy:
    return DiffusionPolicy(HEARD[name].build(), settings(name, **more))


@functools.cache
def rolled(name: str) -> tuple[DiffusionPolicy, Trajectory]:
    """Shared by tests, which leave the weights as they found them."""
    of = made(name)
    return of, of.rollout(prompts(name), 2, seed=0)


@functools.cache
def refusal(name: str) -> tuple[str, str]:
    """The pipeline, and what is said of it."""
    family = SILENT[name][0]
    pipeline = family.build()
    chosen = PolicySettings(model=name, call=family.call, sampler=Sampler(kernel="ddim"))
    with pytest.raises(UsageError) as error:
        DiffusionPolicy(pipeline, chosen).rollout(PROMPTS[:1], 1, seed=0)
    return type(pipeline).__name__, str(error.value)
