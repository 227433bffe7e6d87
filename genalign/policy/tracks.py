"""The media of a pipeline: its output as tracks, and tracks as its autoencoder and its __call__ take them.

This is the one file of the policy that knows media by name. A further medium is a track in `Tracks.__call__`, and the
reverse of it in `values`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genalign.media.image import resize, to_pil
from genalign.media.resample import resampled
from genalign.policy.hooks import attribute
from genalign.types import Media, Prompt, Track, UsageError

PLURAL = {"image": "images", "video": "videos", "audio": "sounds"}
# How the fields of pipelines' outputs begin: images, image; frames, video(s); audios, audio, sound; texts.
FIELDS = {"image": "image", "frame": "video", "video": "video", "audio": "audio", "sound": "audio", "texts": "text"}
RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")  # a vocoder may read one rate and write another
FRAME_RATES = ("frame_rate", "fps")
# What the rows that a prompt brings of a medium are given as, in this order, where the pipeline has the argument: of
# two pictures the second is the last frame.
ARGUMENTS = {
    "image": ("image", "last_image"),
    "video": ("video",),
    "audio": ("audio", "reference_audio", "src_audio", "initial_audio_waveforms"),
}
FINISHING = (("image_processor", "postprocess"), ("video_processor", "postprocess_video"))


def media_of_class(name: str) -> frozenset[str]:
    """What a pipeline of this class of diffusers makes, by the fields of the outputs that its module knows, before
    there is any; images where that says nothing."""
    import diffusers
    from diffusers.utils import BaseOutput

    module = sys.modules.get(getattr(getattr(diffusers, name, None), "__module__", ""))
    known = [value for value in vars(module).values() if isinstance(value, type)] if module else []
    outputs = [kind for kind in known if issubclass(kind, BaseOutput) and kind.__name__.endswith("PipelineOutput")]
    fields = [field.name for kind in outputs for field in dataclasses.fields(kind)]
    return frozenset(filter(None, map(_medium, fields))) or frozenset({"image"})


def _medium(field: str) -> str | None:
    """What a field of a pipeline's output holds."""
    return next((medium for start, medium in FIELDS.items() if field.startswith(start)), None)


def rate_of_frames(
    name: str, parameters: Mapping[str, inspect.Parameter], fixed: Mapping[str, Any], given: float | None
) -> tuple[float, str]:
    """Frames a second of the videos of a pipeline called `name`, and the key of a recipe that sets them: what the
    call says, or else the pipeline's own default, or else those given.

    parameters: of its __call__. fixed: the arguments that every call is given.

    Raises UsageError where there is none, and where one is given that would not be read.
    """
    argument = next((one for one in FRAME_RATES if one in parameters), None)
    rate = given if argument is None else fixed.get(argument, parameters[argument].default)
    key = "policy.frame_rate" if argument is None else f"policy.call.{argument}"
    if given is not None and argument is not None:
        raise UsageError(f"{name} reads no policy.frame_rate; set {key} instead")
    if not isinstance(rate, (int, float)) or not rate > 0:
        raise UsageError(f"{name} does not say how many frames a second its videos have; set {key}")
    return float(rate), key


class Tracks:
    """What a pipeline makes, found by the processors it has and by the fields of its output, never by its class.

    modalities: "video" with a video_processor, "image" with an image_processor alone, "audio" where a vocoder or an
    autoencoder names its sampling rate. fixed: the arguments that every call is given. frame_rate: frames a second of
    its videos, where no argument of its __call__ says so.

    Raises UsageError where it makes something whose range or rate is not known.
    """

    def __init__(self, pipeline: Any, fixed: Mapping[str, Any], frame_rate: float | None = None) -> None:
        self.pipeline, self.fixed = pipeline, fixed
        self.name = type(pipeline).__name__
        self.parameters = inspect.signature(type(pipeline).__call__).parameters
        made = set()
        if hasattr(pipeline, "video_processor"):
            made.add("video")
        elif hasattr(pipeline, "image_processor"):
            made.add("image")
        if self.sound_rate is not None:
            made.add("audio")
        if not made:
            raise UsageError(f"{self.name} has no image_processor, so the range of what it makes is not known")
        self.modalities = frozenset(made)
        self.bare = False  # whether a batch draws from one picture, given as it is; known once a call was tried
        self.frame_rate: float | None = None
        if "video" in made:
            self.frame_rate = rate_of_frames(self.name, self.parameters, fixed, frame_rate)[0]
        elif frame_rate is not None:
            raise UsageError(f"{self.name} makes no videos; leave policy.frame_rate out")
        self._finished = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the context it is seen whether the pipeline finishes its pixels itself: one that steps in pixels may
        return its last x as it is, in [-1,1]."""
        present = [(getattr(self.pipeline, name, None), method) for name, method in FINISHING]
        processors = [(part, method) for part, method in present if hasattr(part, method)]
        self._finished = not processors
        with ExitStack() as stack:
            for processor, method in processors:
                stack.enter_context(attribute(processor, method, self._seeing(getattr(processor, method))))
            yield

    def _seeing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def finish(*args: Any, **kwargs: Any) -> Any:
            self._finished = True
            return real(*args, **kwargs)

        return finish

    def __call__(self, output: Any) -> Media:
        """The tensors of a pipeline's output at output_type="pt": image (B,3,H,W) and video (B,F,3,H,W) in [0,1] with
        its frame rate, audio (B,C,N) in [-1,1] with its sampling rate. Gradients flow through."""
        fields = output if isinstance(output, Mapping) else vars(output)
        tracks = {}
        for name, value in fields.items():
            medium = _medium(name)
            if not isinstance(value, Tensor) or medium is None:
                continue
            if medium == "audio":
                waves = value.float().clamp(-1, 1)
                tracks["audio"] = Track(waves if waves.ndim == 3 else waves[:, None], self.sound_rate)
            else:
                rate = self.frame_rate if medium == "video" else None
                pixels = value.float() if self._finished else (value.float() + 1) / 2
                tracks[medium] = Track(pixels.clamp(0, 1), rate)
        if not tracks:
            raise UsageError(f"{self.name} returns {' and '.join(fields)}, of which nothing is known as a medium")
        return Media(**tracks)

    @property
    def sound_rate(self) -> float | None:
        """Samples a second, from the last component that makes sound: a vocoder, or else an autoencoder."""
        modules = [(name, part) for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)]
        for kind in ("vocoder", "vae"):
            for name, part in modules:
                rates = [getattr(part.config, key, None) for key in RATES] if kind in name else []
                if any(rates):
                    return float(next(filter(None, rates)))
        return None

    # ---- what is encoded --------------------------------------------------------------------------------------------

    def encodable(self, media: Media) -> Track:
        """What of media can be encoded. Raises UsageError where there is none, and of a sound at another rate."""
        if "vocoder" in self.pipeline.components:
            raise UsageError(
                f"{self.name} makes sound of spectrograms by a vocoder, which nothing turns around, so no sound can be"
                " encoded for it; train it on its own samples"
            )
        if len(self.modalities) > 1:
            makes = " and ".join(PLURAL[medium] for medium in sorted(self.modalities, reverse=True))
            raise UsageError(f"{self.name} makes {makes} at once, which cannot be encoded; train it on its own samples")
        (medium,) = self.modalities
        if medium not in media:
            raise UsageError(f"only {PLURAL[medium]} can be encoded, not {' and '.join(media) or 'nothing'}")
        track = media[medium]
        for row in range(len(track)) if medium == "audio" else ():
            rate = track.rate_of(row)
            if rate is not None and rate != self.sound_rate:
                raise UsageError(
                    f"a sound of {rate:g} samples a second, where {self.name} makes {self.sound_rate:g}; convert it"
                )
        return track

    def size(self, made: Media) -> tuple[int, ...]:
        """Of one row that was drawn: height and width of an image, frames, height and width of a video, samples of a
        sound."""
        (medium,) = self.modalities
        (shape,) = made[medium].shapes()
        return {"image": shape[-2:], "video": (shape[0], *shape[-2:]), "audio": shape[-1:]}[medium]

    def values(self, rows: Sequence[Tensor], size: tuple[int, ...], axes: int) -> Tensor:
        """Rows as the autoencoder reads them, of the size that is drawn and in the processor's range: images (R,3,H,W),
        with `axes` 5 as one frame each, (R,3,1,H,W); videos (R,3,F,H,W), with `axes` 4 frame by frame, (R*F,3,H,W);
        sounds (R,C,N), cut or padded with silence.

        Raises UsageError where a video has another number of frames than is drawn.
        """
        if self.modalities == {"audio"}:
            cut = [row[..., : size[0]].float() for row in rows]
            return torch.stack([F.pad(row, (0, size[0] - row.shape[-1])) for row in cut])
        if self.modalities == {"video"}:
            for row in rows:
                if len(row) != size[0]:
                    raise UsageError(f"a clip of {len(row)} frames, where {self.name} draws {size[0]}; cut it")
        height, width = size[-2:]
        sized = torch.stack([resize(row.float(), height, width) for row in rows])
        if self.modalities == {"video"}:
            clips: Tensor = self.pipeline.video_processor.preprocess_video(sized, height, width)
            return clips.transpose(1, 2).flatten(0, 1) if axes == 4 else clips
        pixels: Tensor = self.pipeline.image_processor.preprocess(sized, height, width)
        return pixels.unsqueeze(2) if axes == pixels.ndim + 1 else pixels

    # ---- what a prompt brings along ---------------------------------------------------------------------------------

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
            return Media(audio=Track(row[None], self.sound_rate))
        if row.ndim == 3:
            return Media(image=Track(row[None]))
        if "video" in self.parameters:
            return Media(video=Track(row[None], self.frame_rate))
        return Media(image=Track(row[:1]))

    def other_input(self, prompt: Prompt) -> Prompt:
        """The same with its media in negative."""
        assert prompt.media is not None
        most = {"audio": 0.0}  # the sum of a value and its negative
        negative = {
            name: replace(track, held=[most.get(name, 1.0) - row for row in track])
            for name, track in prompt.media.items()
        }
        return replace(prompt, media=Media(**negative))

    def input_shape(self, prompt: Prompt) -> Any:
        """What of a prompt's media may set the size that is drawn."""
        return None if prompt.media is None else tuple(tuple(track.row(0).shape) for track in prompt.media.values())

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
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
                found[f"{argument.removesuffix('_waveforms')}_sampling_rate"] = int(self.sound_rate or 0)
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
        if rate is None or self.sound_rate is None:
            raise UsageError(f"prompt {uid} brings a sound without its rate; give Track(audio, rate)")
        channels = getattr(self.pipeline.vae.config, "audio_channels", len(row))
        mixed = row if len(row) == channels else row.mean(0, keepdim=True).expand(channels, -1)
        return torch.stack([resampled(wave.float(), round(rate), round(self.sound_rate)) for wave in mixed])


def _extent(row: Any) -> str:
    """Width and height, of a clip with its frames; of a sound channels and samples."""
    if isinstance(row, Tensor):
        return f"{row.shape[0]} channels of {row.shape[1]} samples"
    return f"{len(row)} frames of {row[0].size}" if isinstance(row, list) else str(row.size)


def _content(row: Any) -> bytes:
    if isinstance(row, Tensor):
        return row.cpu().numpy().tobytes()
    return b"".join(frame.tobytes() for frame in (row if isinstance(row, list) else [row]))
