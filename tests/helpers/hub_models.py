"""Tiny models of the same form in place of those that recipes name on the hub, or that are not shipped yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from genalign.files.shipped import holds_model, shipped
from genalign.policy.settings import PolicySettings
from genalign.reward.heads.audio import AudioboxHeads
from tests.helpers.tiny_heads import AUDIOBOX, WAVLM, randomise, save_state, tiny_clap, write_json
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.tiny_pipelines import FAMILIES, MORE
from tests.helpers.tiny_readers import READERS
from tests.helpers.tiny_sounds import SOUNDS
from tests.helpers.tiny_videos import CLIPS
from tests.helpers.untrained import MODELS, built_model

PIPELINES = {  # hub id -> the pipeline of the sweep that has its class and its form
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "wan-2-2-5b",
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": "wan-2-2",
    "diffusers/LTX-2.3-Diffusers": "ltx-2-3",
    "Lightricks/LTX-2": "ltx-2",
    "ACE-Step/acestep-v15-xl-turbo-diffusers": "ace-step",
    "stabilityai/stable-audio-3-medium": "stable-audio-3",
}
PICTURES = {
    "stabilityai/stable-diffusion-3.5-medium": "stable-diffusion-3",
    "stabilityai/stable-diffusion-xl-base-1.0": "stable-diffusion-xl",
    "stabilityai/sdxl-turbo": "stable-diffusion-xl",
    "Tongyi-MAI/Z-Image": "z-image",
    "Qwen/Qwen-Image": "qwen-image",
    "black-forest-labs/FLUX.2-klein-base-4B": "flux2-klein",
}
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
        family = {**FAMILIES, **MORE}[PICTURES[policy.model]]
        family.build().save_pretrained(folder)
        known = {name: value for name, value in policy.call.items() if name == "negative_prompt"}
        call = {**known, "height": 16, "width": 16, **family.call}
        return [f"policy.model={folder}", f"policy.call={json.dumps(call)}", "policy.dtype=float32"]
    if policy.model in SEEING:
        for part in READERS[SEEING[policy.model]].build():
            part.save_pretrained(folder)
        return [f"policy.model={folder}", "policy.max_new_tokens=6", "policy.dtype=float32"]
    if policy.model not in PIPELINES:
        save_tiny_language(folder)
        plain = ["policy.template={}"] if policy.template else []  # its tokenizer has no chat template
        return [f"policy.model={folder}", "policy.max_new_tokens=6", "policy.dtype=float32", *plain]
    family = {**CLIPS, **SOUNDS}[PIPELINES[policy.model]]
    family.build().save_pretrained(folder)
    if PIPELINES[policy.model] in SOUNDS:
        return [f"policy.model={folder}", *(f"policy.call.{name}={value}" for name, value in family.call.items())]
    sizes = {**family.call, "max_sequence_length": LETTERS}
    return [f"policy.model={folder}", *(f"policy.call.{name}={value}" for name, value in sizes.items())]


def _tiny_audiobox(folder: Path) -> dict[str, Any]:
    save_state(randomise(AudioboxHeads(AUDIOBOX, WAVLM), 0.1).state_dict(), folder / "model.safetensors")
    write_json(AUDIOBOX, folder / "config.json")
    return {"encoder": WAVLM}


def _tiny_clap(folder: Path) -> dict[str, Any]:
    tiny_clap(folder)
    return {"components": 8}  # of the 12 that its features have


HEARING = {"laion/larger_clap_general": _tiny_clap, "facebook/audiobox-aesthetics": _tiny_audiobox}


def reward_stand_in(reward: Any, folder: Path) -> list[str]:
    """Saves a copy of a shipped reward file whose model of sounds is on the hub, with a tiny one of its class and few
    exemplars; what a recipe must then be told. Nothing of other rewards."""
    file = shipped("rewards", Path(str(reward)).name)
    spec = yaml.safe_load(file.read_text()) if file.suffix == ".yaml" and file.is_file() else {}
    if spec.get("model") not in HEARING:
        return []
    folder.mkdir(parents=True)
    sizes = HEARING[spec["model"]](folder / "model")
    few = shipped("rewards", "melody_exemplars.py").read_text().replace("count=256", "count=40")
    (folder / "melody_exemplars.py").write_text(few)
    own = {**spec, "model": "model", **sizes}
    (folder / file.name).write_text(yaml.safe_dump({key: own[key] for key in own if key in spec or key == "encoder"}))
    return [f"reward={folder / file.name}"]
