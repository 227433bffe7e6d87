"""What clips a pipeline is asked to draw, by its class and its autoencoder's configuration, before any weight loads."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import torch

from genalign.files.places import model_file
from genalign.files.shipped import CONFIG, PIPELINE
from genalign.media.form import ClipForm
from genalign.policy.settings import PolicySettings
from genalign.policy.tracks import media_of_class, rate_of_frames
from genalign.types import GenalignError, UsageError

COUNTS = ("num_frames", "frames")  # arguments that say how many frames to draw
AUTOENCODER = "vae"
SIDE = 64  # pixels of the frames that an autoencoder without weights is tried with
REACH = 16  # frames up and down within which a count that it holds is looked for


def form_of(name: str, settings: PolicySettings, model: Path | str) -> ClipForm | None:
    """The form of the clips that the pipeline class `name` draws; None of one that draws no clips, or is not known.

    Raises UsageError where no frame rate is known, or the autoencoder cannot hold so many frames.
    """
    import diffusers

    pipeline = getattr(diffusers, name, None)
    if pipeline is None or "video" not in media_of_class(name):
        return None
    parameters = inspect.signature(pipeline.__call__).parameters
    rate, rate_key = rate_of_frames(name, parameters, settings.call, settings.frame_rate)
    argument = next((one for one in COUNTS if one in parameters), None)
    frames = None if argument is None else settings.call.get(argument, parameters[argument].default)
    if argument in settings.call:
        _check_count(name, argument, frames, model)
    return ClipForm(frames if isinstance(frames, int) else None, rate, f"policy.call.{argument or COUNTS[0]}", rate_key)


def _check_count(name: str, argument: str, frames: Any, model: Path | str) -> None:
    """Refuse a count of frames that would be drawn as another one: pipelines round it, up or down, without an error."""
    if not isinstance(frames, int) or frames < 1:
        raise UsageError(f"policy.call.{argument} is {frames!r}, which is no number of frames; give a whole one")
    autoencoder = _autoencoder_of(model)
    if autoencoder is None or _holds(*autoencoder, frames):
        return
    near = [frames + sign * apart for apart in range(1, REACH + 1) for sign in (1, -1)]
    held = next((count for count in near if count > 0 and _holds(*autoencoder, count)), None)
    if held is not None:  # one that holds none in reach cannot be tried in this way
        raise UsageError(
            f"policy.call.{argument} is {frames}, but the autoencoder of {name} cannot hold a clip of {frames} frames; "
            f"the nearest that it can is {held}"
        )


def _autoencoder_of(model: Path | str) -> tuple[str, str] | None:
    """The class and the configuration of a model's autoencoder; None where whoever loads it will say what is wrong."""
    try:
        index = json.loads(model_file(model, PIPELINE).read_text(encoding="utf-8"))
        return index[AUTOENCODER][1], model_file(model, f"{AUTOENCODER}/{CONFIG}").read_text(encoding="utf-8")
    except (GenalignError, OSError, ValueError, KeyError, IndexError, TypeError):
        return None


@functools.lru_cache(maxsize=1)
def _without_weights(kind: str, config: str) -> Any:
    """An autoencoder that has the shapes of its weights alone; None where it cannot be made so."""
    import diffusers

    try:
        with torch.device("meta"):
            return getattr(diffusers, kind).from_config(json.loads(config))
    except Exception:  # of any class, by whatever its constructor raises
        return None


@functools.cache
@torch.no_grad()
def _holds(kind: str, config: str, frames: int) -> bool:
    """Whether a clip of so many frames comes back with as many: seconds, for those that work frame by frame."""
    autoencoder, clip = _without_weights(kind, config), torch.zeros(1, 3, frames, SIDE, SIDE, device="meta")
    try:
        found = autoencoder.encode(clip)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent
        return int(autoencoder.decode(latents).sample.shape[2]) == frames
    except Exception:  # of shapes that it cannot take, by whatever its layers raise
        return False
