"""The media of a pipeline: its output as tracks, and tracks as its autoencoder and its __call__ take them.

This file and inputs.py are those of the policy that know media by name. A further medium is a track in
`Tracks.__call__`, the reverse of it in `values`, and in inputs.py the arguments that it is given as.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genalign.media.image import resize
from genalign.policy.hooks import attribute
from genalign.types import Media, Track, UsageError

PLURAL = {"image": "images", "video": "videos", "audio": "sounds"}
# How the fields of pipelines' outputs begin: images, image; frames, video(s); audios, audio, sound; texts.
FIELDS = {"image": "image", "frame": "video", "video": "video", "audio": "audio", "sound": "audio", "texts": "text"}
RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")  # a vocoder may read one rate and write another
FRAME_RATES = ("frame_rate", "fps")
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
