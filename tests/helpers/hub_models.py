"""Tiny models of the same form in place of those that recipes name on the hub, or that are not shipped yet."""

from __future__ import annotations

from pathlib import Path

from genalign.files.shipped import holds_model, shipped
from genalign.policy.settings import PolicySettings
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.tiny_pipelines import FAMILIES
from tests.helpers.tiny_readers import READERS
from tests.helpers.tiny_videos import CLIPS
from tests.helpers.untrained import MODELS, built_model

PIPELINES = {  # hub id -> the pipeline of the sweep that has its class and its form
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "wan-2-2-5b",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "wan-2-2",
    "diffusers/LTX-2.3-Diffusers": "ltx-2-3",
    "Lightricks/LTX-2": "ltx-2",
}
PICTURES = {"stabilityai/stable-diffusion-3.5-medium": "stable-diffusion-3"}
SEEING = {"Qwen/Qwen3-VL-4B-Instruct": "qwen3-vl"}  # hub id -> the model and its processor of that class
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
        FAMILIES[PICTURES[policy.model]].build().save_pretrained(folder)
        return [f"policy.model={folder}", "policy.call={height: 16, width: 16}", "policy.dtype=float32"]
    if policy.model in SEEING:
        for part in READERS[SEEING[policy.model]].build():
            part.save_pretrained(folder)
        return [f"policy.model={folder}", "policy.max_new_tokens=6", "policy.dtype=float32"]
    if policy.model not in PIPELINES:
        save_tiny_language(folder)
        plain = ["policy.template={}"] if policy.template else []  # its tokenizer has no chat template
        return [f"policy.model={folder}", "policy.max_new_tokens=6", "policy.dtype=float32", *plain]
    family = CLIPS[PIPELINES[policy.model]]
    family.build().save_pretrained(folder)
    sizes = {**family.call, "max_sequence_length": LETTERS}
    return [f"policy.model={folder}", *(f"policy.call.{name}={value}" for name, value in sizes.items())]
