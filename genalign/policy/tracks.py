"""The media of a pipeline: its output as tracks, and tracks as its autoencoder and its __call__ take them.

This is the one file of the policy that knows media by name. A further medium is a track in `Tracks.__call__`, the
reverse of it in `values`, and its name in DRAWN.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genalign.media.image import resize, to_pil
from genalign.policy.hooks import attribute
from genalign.types import Media, Prompt, Track, UsageError

DRAWN = frozenset({"image"})  # media whose rollouts are proven; other ones are decoded here, and refused in __init__
PLURAL = {"image": "images", "video": "videos", "audio": "sounds"}
# How the fields of pipelines' outputs begin: images, image; frames, video(s); audios, audio, sound.
FIELDS = {"image": "image", "frame": "video", "video": "video", "audio": "audio", "sound": "audio"}
RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")  # a vocoder may read one rate and write another


class Tracks:
    """What a pipeline makes, found by the processors it has and by the fields of its output, never by its class.

    modalities: "video" with a video_processor, "image" with an image_processor alone, "audio" where a vocoder or an
    autoencoder names its sampling rate. fixed: the arguments that every call is given.

    Raises UsageError where it makes something whose range is not known, or that this policy does not draw yet.
    """

    def __init__(self, pipeline: Any, fixed: Mapping[str, Any]) -> None:
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
        if not made <= DRAWN:
            makes = " and ".join(PLURAL[medium] for medium in sorted(made, reverse=True))
            raise UsageError(f"{self.name} makes {makes}; this policy knows only images yet")
        self.modalities = frozenset(made)
        self._finished = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the context it is seen whether the pipeline finishes its images itself: one that steps in pixels may
        return its last x as it is, in [-1,1]."""
        processor = getattr(self.pipeline, "image_processor", None)
        if processor is None:
            yield
            return
        self._finished, real = False, processor.postprocess

        @functools.wraps(real)
        def postprocess(*args: Any, **kwargs: Any) -> Any:
            self._finished = True
            return real(*args, **kwargs)

        with attribute(processor, "postprocess", postprocess):
            yield

    def __call__(self, output: Any) -> Media:
        """The tensors of a pipeline's output at output_type="pt": image (B,3,H,W) and video (B,F,3,H,W) in [0,1] with
        its frame rate, audio (B,C,N) in [-1,1] with its sampling rate. Gradients flow through."""
        fields = output if isinstance(output, Mapping) else vars(output)
        tracks = {}
        for name, value in fields.items():
            medium = next((kind for start, kind in FIELDS.items() if name.startswith(start)), None)
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
    def frame_rate(self) -> float | None:
        """Frames a second that the call names, or else the pipeline's own default; None where it takes no rate."""
        for name in ("frame_rate", "fps"):
            if name in self.parameters:
                rate = self.fixed.get(name, self.parameters[name].default)
                return float(rate) if isinstance(rate, (int, float)) else None
        return None

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

    def encodable(self, media: Media) -> list[Tensor]:
        """The rows (3,H,W) of what can be encoded. Raises UsageError where there is none."""
        if "image" not in media:
            raise UsageError(f"only images can be encoded, not {' and '.join(media) or 'nothing'}")
        return [row for row in media["image"].data if isinstance(row, Tensor)]

    def size(self, made: Media) -> tuple[int, int]:
        """Height and width of what was drawn."""
        height, width = made["image"].data[0].shape[-2:]  # type: ignore[union-attr]
        return height, width

    def values(self, rows: Sequence[Tensor], size: tuple[int, int], axes: int) -> Tensor:
        """Images (3,H,W) in [0,1] as the autoencoder reads them: resized and in the processor's range (R,3,H,W), with
        `axes` 5 as one frame each, (R,3,1,H,W)."""
        sized = torch.stack([resize(row.float(), *size) for row in rows])
        pixels: Tensor = self.pipeline.image_processor.preprocess(sized, *size)
        return pixels.unsqueeze(2) if axes == pixels.ndim + 1 else pixels

    # ---- what a prompt brings along ---------------------------------------------------------------------------------

    @property
    def reads_input(self) -> bool:
        return "image" in self.parameters

    def as_input(self, row: Tensor) -> Media:
        """One image (3,H,W) as a prompt brings it along."""
        return Media(image=Track(row[None]))

    def input_shape(self, prompt: Prompt) -> tuple[int, ...] | None:
        """What of a prompt's media may set the size that is drawn."""
        return None if prompt.media is None else tuple(prompt.media["image"].data[0].shape)  # type: ignore[union-attr]

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The arguments of __call__ that hold the prompts' media.

        Raises UsageError where only some prompts bring an image, or their sizes differ, or the pipeline takes none.
        """
        given = [prompt for prompt in prompts if prompt.media is not None]
        if not given:
            return {}
        if not self.reads_input:
            raise UsageError(f"prompt {given[0].uid} brings media, but {self.name} takes no image")
        for prompt in prompts:
            if prompt.media is None or set(prompt.media) != {"image"} or prompt.media.rows != 1:
                raise UsageError(
                    f"prompt {prompt.uid} must bring one image and nothing else, as others of its batch do"
                )
        rows = [prompt.media["image"].data[0] for prompt in prompts if prompt.media is not None]
        images = [to_pil(row) for row in rows if isinstance(row, Tensor)]
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise UsageError(f"input images of one batch must have one size, not {' and '.join(map(str, sizes))}")
        return {"image": images}
