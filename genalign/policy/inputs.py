"""What prompts bring beside their text, as the arguments of a pipeline's __call__."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genalign.media.image import to_pil
from genalign.media.resample import resampled
from genalign.policy.tracks import Tracks
from genalign.types import Media, Prompt, Track, UsageError

# What the rows that a prompt brings of a medium are given as, in this order, where the pipeline has the argument: of
# two pictures the second is the last frame.
ARGUMENTS = {
    "image": ("image", "last_image"),
    "video": ("video",),
    "audio": ("audio", "reference_audio", "src_audio", "initial_audio_waveforms"),
}


class Inputs:
    """The media of prompts as the arguments that a pipeline has for them, found by their names, never by its class.

    tracks: what the pipeline makes. bare: whether a batch draws from one picture, given as it is; known once a call was
    tried.
    """

    def __init__(self, tracks: Tracks) -> None:
        self.tracks, self.name, self.parameters = tracks, tracks.name, tracks.parameters
        self.bare = False

    @property
    def reads(self) -> str:
        """What a prompt may bring beside its text, in words; empty where nothing is read."""
        words = {"image": "an image", "video": "a video", "audio": "a sound"}
        taken = [medium for medium, names in ARGUMENTS.items() if not self.parameters.keys().isdisjoint(names)]
        return " or ".join(words[medium] for medium in taken)

    @property
    def required(self) -> frozenset[str]:
        """The arguments for media that have no default."""
        names = {name for arguments in ARGUMENTS.values() for name in arguments} & set(self.parameters)
        return frozenset(name for name in names if self.parameters[name].default is inspect.Parameter.empty)

    def as_input(self, row: Tensor) -> Media:
        """An image (3,H,W), a video (F,3,H,W) or else its first frame, or a sound (C,N), as a prompt brings it."""
        if row.ndim == 2:
            return Media(audio=Track(row[None], self.tracks.sound_rate))
        if row.ndim == 3:
            return Media(image=Track(row[None]))
        if "video" in self.parameters:
            return Media(video=Track(row[None], self.tracks.frame_rate))
        return Media(image=Track(row[:1]))

    def __call__(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The arguments of __call__ that hold the prompts' media: `image`, or of two the second as `last_image`,
        `video`, and sound at the pipeline's rate.

        Raises UsageError where only some prompts bring one of them, or their sizes differ, or the pipeline takes none,
        or one for all.
        """
        brought = [self._brought(prompt) for prompt in prompts]
        for prompt, one in zip(prompts, brought, strict=True):
            missing = sorted(set(one) ^ set(brought[0]))
            if missing:
                raise UsageError(
                    f"prompts of one batch must all bring {missing[0]}, or none of them; prompt {prompt.uid} differs"
                    " from the first"
                )
        found: dict[str, Any] = {}
        for argument in brought[0]:
            rows = [one[argument] for one in brought]
            extents = dict.fromkeys(map(_extent, rows))
            if len(extents) > 1:
                raise UsageError(f"input {argument}s of one batch must have one size, not {' and '.join(extents)}")
            if self.bare and len(set(map(_content, rows))) > 1:
                raise UsageError(
                    f"{self.name} draws a batch from one {argument}; set policy.batch_size so that a batch holds"
                    " samples of one prompt alone, or to 1"
                )
            found[argument] = rows[0] if self.bare else torch.stack(rows) if isinstance(rows[0], Tensor) else rows
            if f"{argument.removesuffix('_waveforms')}_sampling_rate" in self.parameters:
                found[f"{argument.removesuffix('_waveforms')}_sampling_rate"] = int(self.tracks.sound_rate or 0)
        return found

    def _brought(self, prompt: Prompt) -> dict[str, Any]:
        """A prompt's media by argument: pictures, clips as lists of them, and sounds as tensors (C,N)."""
        found: dict[str, Any] = {}
        for medium, track in (prompt.media or {}).items():
            takes = [name for name in ARGUMENTS.get(medium, ()) if name in self.parameters]
            if len(track) > len(takes):
                none = f"no {medium}" if not takes else f"one {medium} and no {ARGUMENTS[medium][-1]}"
                raise UsageError(f"prompt {prompt.uid} brings media, but {self.name} takes {none}")
            for number, (name, row) in enumerate(zip(takes, track, strict=False)):
                if medium == "audio":
                    found[name] = self._wave(row, track.rate_of(number), prompt.uid)
                else:
                    found[name] = to_pil(row) if row.ndim == 3 else [to_pil(frame) for frame in row]
        return found

    def _wave(self, row: Tensor, rate: float | None, uid: int) -> Tensor:
        """A sound (C,N) at the rate of the pipeline's autoencoder, and with as many channels."""
        if rate is None or self.tracks.sound_rate is None:
            raise UsageError(f"prompt {uid} brings a sound without its rate; give Track(audio, rate)")
        channels = getattr(self.tracks.pipeline.vae.config, "audio_channels", len(row))
        mixed = row if len(row) == channels else row.mean(0, keepdim=True).expand(channels, -1)
        return resampled(mixed.float(), round(rate), round(self.tracks.sound_rate))


def other_input(prompt: Prompt) -> Prompt:
    """The same with its media in negative."""
    assert prompt.media is not None
    most = {"audio": 0.0}  # the sum of a value and its negative
    negative = {
        name: replace(track, held=[most.get(name, 1.0) - row for row in track]) for name, track in prompt.media.items()
    }
    return replace(prompt, media=Media(**negative))


def input_shape(prompt: Prompt) -> Any:
    """What of a prompt's media may set the size that is drawn."""
    return None if prompt.media is None else tuple(tuple(track.row(0).shape) for track in prompt.media.values())


def _extent(row: Any) -> str:
    """Width and height, of a clip with its frames; of a sound channels and samples."""
    if isinstance(row, Tensor):
        return f"{row.shape[0]} channels of {row.shape[1]} samples"
    return f"{len(row)} frames of {row[0].size}" if isinstance(row, list) else str(row.size)


def _content(row: Any) -> bytes:
    if isinstance(row, Tensor):
        return row.cpu().numpy().tobytes()
    return b"".join(frame.tobytes() for frame in (row if isinstance(row, list) else [row]))
