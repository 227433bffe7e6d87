"""Policies on the pipelines that make videos."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from genalign.media.image import to_pil
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.policy.tracks import FRAME_RATES
from genalign.types import Media, Prompt, Track, Trajectory, UsageError
from tests.helpers.diffusion import PROMPTS
from tests.helpers.edits import PIXELS
from tests.helpers.tiny_videos import ANIMATING, CLIPS, RATE, REDRAWING, REFUSED_CLIPS

BOTH = {**CLIPS, **ANIMATING, **REDRAWING}
MOVING = torch.rand(2, 1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(1)).mul(255).round().div(255)


def prompts(name: str) -> list[Prompt]:
    if name in CLIPS:
        return PROMPTS[:2]
    if name in REDRAWING:
        brought = [Media(video=Track(clip, RATE)) for clip in MOVING]
    elif name == "wan-flf2v":
        brought = [Media(image=Track(PIXELS[[k, k + 1]])) for k in range(2)]
    else:
        brought = [Media(image=Track(picture[None])) for picture in PIXELS[:2]]
    return [replace(prompt, media=media) for prompt, media in zip(PROMPTS[:2], brought, strict=True)]


def settings(pipeline: Any, name: str, **sampler: Any) -> PolicySettings:
    family = BOTH[name]
    steps = {"steps": 4, "kernel": "flow-sde"} if family.flow else {
        "steps": 5, "kernel": "ddim", "window": 3, "window_start": (1, 2)
    }  # fmt: skip
    if name in REDRAWING:
        steps["window_start"] = (0, 1)  # of the steps that are left
    takes_rate = any(rate in inspect.signature(type(pipeline).__call__).parameters for rate in FRAME_RATES)
    return PolicySettings(
        model=name,
        call=family.call,
        sampler=Sampler(**{**steps, **sampler}),
        lora=Lora(rank=2, alpha=4),
        batch_size=2,  # the samples of one prompt
        frame_rate=None if takes_rate else RATE,
    )


def made(name: str, **sampler: Any) -> DiffusionPolicy:
    pipeline = BOTH[name].build()
    return DiffusionPolicy(pipeline, settings(pipeline, name, **sampler))


@functools.cache
def rolled(name: str) -> tuple[DiffusionPolicy, Trajectory]:
    """Shared by tests, which leave the weights as they found them."""
    of = made(name)
    return of, of.rollout(prompts(name), 2, seed=0)


@functools.cache
def refusal(name: str) -> tuple[str, str]:
    """The pipeline, and what is said of it."""
    pipeline = REFUSED_CLIPS[name][0].build()
    takes_rate = any(rate in inspect.signature(type(pipeline).__call__).parameters for rate in FRAME_RATES)
    chosen = PolicySettings(model=name, frame_rate=None if takes_rate else RATE)
    with pytest.raises(UsageError) as error:
        DiffusionPolicy(pipeline, chosen).rollout(PROMPTS, 1, seed=0)
    return type(pipeline).__name__, str(error.value)


def plainly(pipeline: Any, of: DiffusionPolicy, prompt: Prompt) -> Media:
    """A sample at seed 7 by diffusers alone, in single steps on the pipeline's own time grid, as tracks."""
    scheduler = pipeline.scheduler
    if isinstance(scheduler, diffusers.UniPCMultistepScheduler):
        scheduler.register_to_config(solver_order=1, disable_corrector=list(range(10)))
        scheduler.disable_corrector = list(range(10))
    elif isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
        scheduler.register_to_config(solver_order=1)
    elif isinstance(scheduler, diffusers.CogVideoXDPMScheduler):
        pipeline.scheduler = diffusers.CogVideoXDDIMScheduler(**_known(scheduler, diffusers.CogVideoXDDIMScheduler))
    elif isinstance(scheduler, diffusers.EulerAncestralDiscreteScheduler):
        pipeline.scheduler = diffusers.EulerDiscreteScheduler(**_known(scheduler, diffusers.EulerDiscreteScheduler))
    pipeline.set_progress_bar_config(disable=True)
    call = dict(of.settings.call)
    if prompt.media is not None and "video" in prompt.media:
        call["video"] = [to_pil(frame) for frame in prompt.media["video"].data[0]]
    elif prompt.media is not None:
        call["image"], *last = [to_pil(picture) for picture in prompt.media["image"].data]
        call.update(zip(["last_image"], last, strict=False))
    with torch.no_grad():
        output = pipeline(
            prompt=prompt.text,
            generator=torch.Generator().manual_seed(7),
            num_inference_steps=of.settings.sampler.steps,
            output_type="pt",
            **call,
        )
    return of._pipe.tracks(output)


def _known(scheduler: Any, kind: Any) -> dict[str, Any]:
    known = inspect.signature(kind).parameters
    return {name: value for name, value in scheduler.config.items() if name in known}
