"""Banks of latents: rendered training scenes behind the autoencoder, made once and kept in a builder's work folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genalign.lab.counting import counting_scene
from genalign.lab.world import Scene, place, render, sample_facts

CHUNK = 256
Bank = tuple[Tensor, list[dict[str, Any]]]  # latents (N, 4, 16, 16) fp16, and the facts of their scenes


def world_scene(rng: np.random.Generator) -> Scene:
    """A scene of EmojiWorld's training split."""
    return place(sample_facts(rng, "train"), rng)


SCENES: dict[str, Callable[[np.random.Generator], Scene]] = {"world": world_scene, "counting": counting_scene}


def latent_bank(vae: Any, work: Path, kind: str, count: int, seed: int = 2) -> Bank:
    """`count` scenes of a kind of SCENES, encoded; read from `work` where they stand already."""
    path = work / f"bank-{kind}-{count}-{seed}.safetensors"
    if not path.exists():
        parts, facts = [], []
        for chunk in range(count // CHUNK):
            rng = np.random.default_rng(seed * 10_000_000 + chunk)
            scenes = [SCENES[kind](rng) for _ in range(CHUNK)]
            images = torch.from_numpy(np.stack([render(scene, rng) for scene in scenes])).permute(0, 3, 1, 2)
            with torch.no_grad():
                parts.append(vae.encode(images.contiguous().mul(2).sub(1)).latents.half())
            facts += [dict(scene.facts) for scene in scenes]
        path.with_suffix(".json").write_text(json.dumps(facts))
        save_file({"latents": torch.cat(parts).contiguous()}, path)
    return load_file(path)["latents"], json.loads(path.with_suffix(".json").read_text())


def joined(*banks: Bank) -> Bank:
    return torch.cat([latents for latents, _ in banks]), [facts for _, rows in banks for facts in rows]
