"""A prompt's media through the model's own processor, one prompt at a time, so that none gets into another's row."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genalign.media.image import to_pil
from genalign.media.resample import resampled
from genalign.policy.language.batch import Encoded
from genalign.types import Modality, Prompt, Track, UsageError
from genalign.types.samples import to_levels

PARTS: dict[Modality, tuple[str, tuple[str, ...]]] = {
    "image": ("images", ("image_processor",)),
    "video": ("videos", ("video_processor",)),
    "audio": ("audio", ("feature_extractor", "audio_processor")),
}
"""Of each medium: the processor's argument, and the part of it that reads the medium."""
MARK = re.compile(r"(?:(?:image|video|audio|vision)_(?:start_|end_|bos_|eos_)?|bo[ia]_|eo[ia]_)token_(?:id|ids|index)")
TYPES = ("mm_token_type_ids", "token_type_ids")  # which tokens are of a medium: positions and attention follow from it
Read = tuple[list[int], dict[str, list[int]], dict[str, Tensor]]
PIXELS = ("pixel_values", "pixel_values_videos")


class Reader:
    """The processor of a vision-language model, which it is the only way into: text with a placeholder for each medium
    becomes tokens, and the media tensors.

    Pictures are handed over in 8 bits (processors divide by 255 whatever they are given), clips with their frame rate,
    sounds in mono at the rate of the processor.

    Raises:
        UsageError: a processor without a tokenizer.
    """

    def __init__(self, processor: Any, model: Any) -> None:
        if getattr(processor, "tokenizer", None) is None:
            raise UsageError(
                f"{type(processor).__name__} has no tokenizer; put the tokenizer's files beside the processor's"
            )
        self.processor, self.model, self.name = processor, model, type(processor).__name__
        self.arguments = inspect.signature(model.forward).parameters

    @property
    def placeholders(self) -> frozenset[int]:
        """The ids at which the model puts media, and those that it takes for their begin and end: Qwen-Omni tells
        positions by these. No completion may hold one."""
        found: set[Any] = set()
        for holder in (self.processor, self.model.config):
            for name in filter(MARK.fullmatch, dir(holder)):
                value = getattr(holder, name)
                found.update(value if isinstance(value, list) else [value])
        return frozenset(found & set(range(len(self.model.get_input_embeddings().weight))))

    def takes(self, medium: Modality) -> bool:
        return any(getattr(self.processor, part, None) is not None for part in PARTS[medium][1])

    def check(self, prompt: Prompt) -> None:
        """Refuse media that the processor does not read."""
        for medium in prompt.media or {}:
            if medium not in PARTS or not self.takes(medium):
                raise UsageError(f"prompt {prompt.text[:40]!r} brings {medium}, which {self.name} does not read")

    def parts(self, prompt: Prompt) -> list[Modality]:
        """What the prompt's turn begins with: a part for each medium, but for those whose place its text names."""
        self.check(prompt)
        found: list[Modality] = []
        for medium in PARTS:
            rows = len(prompt.media[medium]) if prompt.media is not None and medium in prompt.media else 0
            mark = self.mark(medium)
            if not (mark and prompt.text.count(mark)):
                found += [medium] * rows
        return found

    def mark(self, medium: Modality) -> str | None:
        """The text that stands for a medium."""
        mark: str | None = getattr(self.processor, f"{medium}_token", None)
        return mark

    def read(self, text: str, prompt: Prompt, special: bool) -> Read:
        """Tokens, what stands beside each of them, and the media, of a written prompt.

        special: whether the tokenizer adds its own tokens at the ends.

        Raises:
            UsageError: more or fewer placeholders than media, or what the processor says of them.
        """
        given: dict[str, Any] = {}
        for medium, (argument, _) in PARTS.items():
            track = prompt.media.get(medium) if prompt.media is not None else None
            self._count(text, medium, 0 if track is None else len(track), prompt)
            if track is not None:
                given |= {argument: self._taken(medium, track)} | self._about(medium, track)
        try:
            read = self.processor(text=[text], return_tensors="pt", add_special_tokens=special, **given)
        except (IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{self.name} does not read the media of prompt {prompt.text[:40]!r}: {reason}") from error
        ids = read.pop("input_ids")
        beside: dict[str, Tensor] = {}
        media: dict[str, Tensor] = {}
        for name, value in read.items():
            if name != "attention_mask" and isinstance(value, Tensor):
                (beside if value.shape == ids.shape and not value.is_floating_point() else media)[name] = value
        self._check_types(beside, media)
        return ids[0].tolist(), {name: value[0].tolist() for name, value in beside.items()}, media

    def _count(self, text: str, medium: Modality, rows: int, prompt: Prompt) -> None:
        mark = self.mark(medium)
        places = text.count(mark) if mark else rows
        if places != rows:
            raise UsageError(
                f"prompt {prompt.text[:40]!r} brings {rows} of {medium}, but is written with {mark!r} {places} times; "
                f"give each its own, or take a chat template that writes one for each"
            )

    def _check_types(self, beside: Mapping[str, Any], media: Mapping[str, Any]) -> None:
        lacking = [name for name in TYPES if name in self.arguments and name not in beside]
        if media and len(lacking) == sum(name in self.arguments for name in TYPES) > 0:
            raise UsageError(
                f"{type(self.model).__name__} needs {lacking[0]} to place media, and {self.name} gives none; take the "
                f"processor that belongs to it"
            )

    def _taken(self, medium: Modality, track: Track) -> Any:
        if medium == "image":
            return [[to_pil(row) for row in track]]
        if medium == "video":
            return [[to_levels(row) for row in track]]
        return [self._wave(row, track.rate_of(i)) for i, row in enumerate(track)]

    def _about(self, medium: Modality, track: Track) -> dict[str, Any]:
        if medium == "video":
            clocks = [self._clock(row, track.rate_of(i)) for i, row in enumerate(track)]
            wanted = getattr(self.processor.video_processor, "num_frames", None) or 0
            short = any(clock["total_num_frames"] < wanted for clock in clocks)  # fewer than it would choose from them
            return {"video_metadata": [clocks]} | ({"do_sample_frames": False} if short else {})
        return {"sampling_rate": self._sound_rate} if medium == "audio" else {}

    @staticmethod
    def _clock(row: Tensor, rate: float | None) -> dict[str, Any]:
        if rate is None:
            raise UsageError("a prompt brings a clip without its frame rate; give Track(video, rate)")
        frames = len(row)
        return {"fps": rate, "total_num_frames": frames, "duration": frames / rate, "frames_indices": [*range(frames)]}

    @property
    def _sound_rate(self) -> int:
        part = next(part for name in PARTS["audio"][1] if (part := getattr(self.processor, name, None)) is not None)
        return int(part.sampling_rate)

    def _wave(self, row: Tensor, rate: float | None) -> Any:
        if rate is None:
            raise UsageError("a prompt brings a sound without its rate; give Track(audio, rate)")
        return resampled(row.mean(0).float(), round(rate), self._sound_rate).numpy()


def is_processor(reader: Any) -> bool:
    from transformers import ProcessorMixin

    return isinstance(reader, ProcessorMixin)


@torch.no_grad()
def with_encoded_media(model: Any, row: Encoded) -> Encoded:
    """The prompt with its media on the model's device, and pixels encoded by its vision towers where its forward takes
    them so. Adapters leave the towers alone, so that holds for as long as a run."""
    weight, media = next(model.parameters()), {}
    seen: dict[str, Any] = {}
    for name, value in row.media.items():
        media[name] = value.to(weight.device, weight.dtype if value.is_floating_point() else None)
    takes_encoded = "mm_encoder_outputs" in inspect.signature(model.forward).parameters
    for medium, pixels in zip(("image", "video"), PIXELS, strict=True):
        encode = getattr(model.base_model, f"get_{medium}_features", None)
        if takes_encoded and pixels in media and encode is not None:
            own = {name: media[name] for name in inspect.signature(encode).parameters if name in media}
            seen[medium] = encode(**own, return_dict=True)
            del media[pixels]
    return replace(row, media=media, seen=seen)
