"""Tiny models of the same form in place of those that recipes name on the hub, or that are not shipped yet."""

from __future__ import annotations

import json
from pathlib import Path

from genalign.files.shipped import holds_model, shipped
from genalign.policy.settings import PolicySettings
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.tiny_pipelines import FAMILIES, MORE
from tests.helpers.tiny_videos import CLIPS
from tests.helpers.untrained import MODELS, built_model

PIPELINES = {  # hub id -> the pipeline of the sweep that has its class and its form
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "wan-2-2-5b",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "wan-2-2",
    "diffusers/LTX-2.3-Diffusers": "ltx-2-3",
    "Lightricks/LTX-2": "ltx-2",
}
PICTURES = {
    "stabilityai/stable-diffusion-3.5-medium": "stable-diffusion-3",
    "stabilityai/stable-diffusion-xl-base-1.0": "stable-diffusion-xl",
    "stabilityai/sdxl-turbo": "stable-diffusion-xl",
    "Tongyi-MAI/Z-Image": "z-image",
    "Qwen/Qwen-Image": "qwen-image",
    "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein",
}
LETTERS = 96  # tokens of the longest prompt that is shipped for them, each a letter


def stand_in(policy: PolicySettings, folder: Path) -> list[str]:
    """Saves a tiny model in the place of the one on the hub; what a recipe must then be told: its folder and sizes.

    Whatever else the recipe says, of its own file's `call` too, stays as it is. Nothing of a model that is shipped;
    of one that is not yet, where an untrained one lies.
    """
    if policy.model in MODELS and not holds_model(shipped("assets", policy.model)):
        return [f"policy.model={built_model(policy.model)}"]
    if "/" not in policy.model:
        return []
    if policy.model in PICTURES:
        family = {**FAMILIES, **MORE}[PICTURES[policy.model]]
        family.build().save_pretrained(folder)
        known = {name: value for name, value in policy.call.items() if name == "negative_prompt"}
        call = {**known, "height": 16, "width": 16, **family.call}
        return [f"policy.model={folder}", f"policy.call={json.dumps(call)}", "policy.dtype=float32"]
    if policy.model not in PIPELINES:
        save_tiny_language(folder)
        return [f"policy.model={folder}", "policy.max_new_tokens=6"]
    family = CLIPS[PIPELINES[policy.model]]
    family.build().save_pretrained(folder)
    sizes = {**family.call, "max_sequence_length": LETTERS}
    return [f"policy.model={folder}", *(f"policy.call.{name}={value}" for name, value in sizes.items())]
