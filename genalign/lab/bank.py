"""Banks of latents: rendered training scenes or clips behind the autoencoder, made once and kept in a work folder."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from genalign.files.atomic import replace_file
from genalign.lab import melody, melody_pieces, moves, moves_clips
from genalign.lab.counting import counting_scene
from genalign.lab.melody_bank import RATE
from genalign.lab.world import Scene, place, render, sample_facts
from genalign.media.resample import resampled

CHUNK = 256


@dataclass(frozen=True)
class Bank:
    """Latents (N, C, ...) fp16 as the autoencoder has them, their facts, and where a kind tells it, what is where: a
    class (N, places), or several (N, places, columns), of each of the places that a transformer has as tokens."""

    latents: Tensor
    facts: list[dict[str, Any]]
    shown: Tensor | None = None


def world_scene(rng: np.random.Generator) -> Scene:
    """A scene of EmojiWorld's training split."""
    return place(sample_facts(rng, "train"), rng)


def moving_clip(rng: np.random.Generator) -> moves_clips.Clip:
    """A clip of the training split of EmojiWorld moves."""
    return moves_clips.choreograph(moves.sample_facts(rng, "train"), rng)


def moving_pair(rng: np.random.Generator) -> moves_clips.Clip:
    """The same, of two objects."""
    return moves_clips.choreograph(moves.sample_pair(rng, "train"), rng)


def piece(rng: np.random.Generator) -> melody_pieces.Piece:
    """A piece of the training split of MelodyWorld."""
    return melody_pieces.arrange(melody.sample_facts(rng, "train"), rng)


@torch.no_grad()
def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of pictures (B, 3, H, W) or clips (B, 3, F, H, W) in [-1, 1]; of a distribution of them its mode."""
    out = vae.encode(pixels)
    return out.latents if "latents" in out else out.latent_dist.mode()


def encoded_rendered(vae: Any, pixels: Tensor) -> Tensor:
    """Of pictures or clips in [0, 1], as they are rendered."""
    return encoded(vae, pixels.mul(2).sub(1))


@torch.no_grad()
def encoded_sounds(vae: Any, waves: Tensor) -> Tensor:
    """Latents (B, T, C) of sounds (B, 1, N) in [-1, 1] at the world's rate."""
    heard = resampled(waves, RATE, vae.config.sample_rate)
    return vae.encode(heard, sample_posterior=False).latents.transpose(1, 2)


@dataclass(frozen=True)
class Kind:
    """What a bank is of: how one is laid out (an object with `facts`) and rendered, the axes of a batch of them in the
    order that the autoencoder has, channels second, how it encodes them, and what one that is laid out shows where
    (places,) or (places, columns)."""

    lay_out: Callable[[np.random.Generator], Any]
    render: Callable[[Any, np.random.Generator], np.ndarray]
    axes: tuple[int, ...]
    encode: Callable[[Any, Tensor], Tensor] = encoded_rendered
    shown: Callable[[Any], np.ndarray] | None = None


KINDS = {
    "world": Kind(world_scene, render, (0, 3, 1, 2)),
    "counting": Kind(counting_scene, render, (0, 3, 1, 2)),
    "moves": Kind(moving_clip, moves_clips.render, (0, 2, 1, 3, 4), shown=moves_clips.shown),
    "pairs": Kind(moving_pair, moves_clips.render, (0, 2, 1, 3, 4), shown=moves_clips.shown),
    "melodies": Kind(
        piece, lambda laid_out, rng: melody_pieces.render(laid_out), (0, 1, 2), encoded_sounds, melody_pieces.shown
    ),
}


def latent_bank(vae: Any, work: Path, kind: str, count: int, seed: int = 2) -> Bank:
    """`count` samples of a kind of KINDS, encoded; read from `work` where they stand already."""
    path, of = work / f"bank-{kind}-{count}-{seed}.safetensors", KINDS[kind]
    if not path.exists():
        parts, shown, facts = [], [], []
        for chunk in range(count // CHUNK):
            rng = np.random.default_rng(seed * 10_000_000 + chunk)
            laid_out = [of.lay_out(rng) for _ in range(CHUNK)]
            rendered = torch.from_numpy(np.stack([of.render(one, rng) for one in laid_out])).permute(of.axes)
            parts.append(of.encode(vae, rendered.contiguous()).half())
            shown += [torch.from_numpy(of.shown(one)) for one in laid_out if of.shown is not None]
            facts += [dict(one.facts) for one in laid_out]
        path.with_suffix(".json").write_text(json.dumps(facts))
        tensors = {"latents": torch.cat(parts).contiguous(), **({"shown": torch.stack(shown)} if shown else {})}
        replace_file(path, save(tensors))
    tensors = load_file(path)
    return Bank(tensors["latents"], json.loads(path.with_suffix(".json").read_text()), tensors.get("shown"))


def normalised(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, ...) of an autoencoder as its pipeline's denoiser has them: of about unit size."""
    if "latents_mean" not in vae.config:
        return latents * float(vae.config.get("scaling_factor", 1.0))
    mean, std = (torch.tensor(vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (latents - mean) / std


def joined(*banks: Bank) -> Bank:
    shown = [bank.shown for bank in banks if bank.shown is not None]
    return Bank(
        latents=torch.cat([bank.latents for bank in banks]),
        facts=[facts for bank in banks for facts in bank.facts],
        shown=torch.cat(shown) if len(shown) == len(banks) else None,
    )
