"""How autoencoders decode, by diffusers' own switches: in tiles, sample by sample, some frames at a time."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from genalign.policy.settings import Vae
from genalign.types import UsageError

FRAMES = "num_latent_frames_batch_size"  # the attribute of autoencoders that decode so many frames of latents at a time
ARGUMENT = "decode_chunk_size"  # the argument of pipelines that hand over so many frames at a time


def set_decoding(pipeline: Any, settings: Vae) -> dict[str, Any]:
    """Switch on what the settings name, in every autoencoder of the pipeline; the arguments that a call must add.

    Raises UsageError where an autoencoder, or the pipeline, has no such switch.
    """
    networks = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    autoencoders = [network for network in networks if hasattr(network, "decode")]
    for wanted, name in ((settings.tiling, "tiling"), (settings.slicing, "slicing")):
        found = [each for each in autoencoders if hasattr(each, f"use_{name}")]
        if wanted and not found:
            raise UsageError(f"policy.vae.{name}: {_kinds(pipeline, autoencoders)} cannot decode so; leave it out")
        for autoencoder in found if wanted else ():
            getattr(autoencoder, f"enable_{name}")()
    if settings.chunk is None:
        return {}
    if ARGUMENT in inspect.signature(type(pipeline).__call__).parameters:
        return {ARGUMENT: settings.chunk}
    found = [each for each in autoencoders if hasattr(each, FRAMES)]
    if not found:
        raise UsageError(
            f"policy.vae.chunk: {_kinds(pipeline, autoencoders)} has its own number of frames; leave it out, and set"
            " policy.vae.tiling"
        )
    for autoencoder in found:
        setattr(autoencoder, FRAMES, settings.chunk)
    return {}


def _kinds(pipeline: Any, autoencoders: list[nn.Module]) -> str:
    return ", ".join(type(each).__name__ for each in autoencoders) or type(pipeline).__name__
