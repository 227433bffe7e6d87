"""Frames that leave a pipeline's decoder as levels, a few at a time, so that no clip is held in floats whole.

Autoencoders of clips decode a few frames at a time (causal convolutions with a cache, or frames as rows), but pipelines
join all of them in floats and finish them in several copies. Here each piece is finished by the pipeline's own
processor as soon as it is decoded, rounded, and moved to the CPU; the pipeline goes on with a coarse grid of its pixels
alone. What it returns of those must be bit for bit what was taken there, so a pipeline that does anything else with its
frames is found out, and decodes as it did.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from genalign.policy.hooks import attribute
from genalign.types import Media, Track
from genalign.types.samples import to_levels

GRID = 16  # pixels of each side that the pipeline goes on with, about


class Frames:
    """Takes the frames of a pipeline that makes clips. works: until a run has shown that what is taken is not what the
    pipeline returns, as where it blends tiles, cuts frames or folds channels into pixels."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._decoder = getattr(getattr(pipeline, "vae", None), "decoder", None)
        self.works = self._decoder is not None and hasattr(pipeline, "video_processor")
        self._pieces: list[Tensor] = []  # (n,f,3,H,W) levels, in the order in which they were decoded

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within the context, without grad, frames are taken from the decoder, for `whole` to put into what is made."""
        self._pieces = []
        if not self.works or torch.is_grad_enabled():
            yield
            return
        real = self._decoder.forward  # type: ignore[union-attr]

        @functools.wraps(real)
        def forward(*args: Any, **kwargs: Any) -> Any:
            answer = real(*args, **kwargs)
            pixels, *rest = answer if isinstance(answer, tuple) else (answer,)  # some return their cache as well
            if not self.works or not self._take(pixels):
                self.works = False
                return answer
            coarse = _coarse(pixels).contiguous()
            return (coarse, *rest) if isinstance(answer, tuple) else coarse

        with attribute(self._decoder, "forward", forward):
            yield

    def _take(self, pixels: Any) -> bool:
        """Whether these are pixels of frames: (n,3,f,H,W), or (n,3,H,W) of one frame each."""
        if not isinstance(pixels, Tensor) or pixels.ndim not in (4, 5) or pixels.shape[1] != 3:
            return False
        clip = pixels if pixels.ndim == 5 else pixels[:, :, None]
        finished = self.pipeline.video_processor.postprocess_video(clip, "pt")
        if not bool(torch.isfinite(finished).all()):
            return False
        self._pieces.append(to_levels(finished))
        return True

    def whole(self, made: Media) -> Media | None:
        """What the pipeline made, with the frames that were taken; as it is, where none were. None where the pipeline
        returns other frames, which must then be drawn again without taking them."""
        pieces, self._pieces = self._pieces, []
        if not pieces:
            return made
        video = made["video"]
        shown = to_levels(video.data)  # type: ignore[arg-type]  # (B,F,3,h,w)
        levels = _joined(pieces, *shown.shape[:2])
        if levels is None or not torch.equal(_coarse(levels), shown):
            self.works = False
            return None
        device = video.held.device if isinstance(video.held, Tensor) else None
        return Media(**{**made, "video": Track(levels, video.rate, device=device)})


def _coarse(pixels: Tensor) -> Tensor:
    """(...,H,W) -> (...,h,w), every so many of its pixels."""
    height, width = (max(1, side // GRID) for side in pixels.shape[-2:])
    return pixels[..., ::height, ::width]


def _joined(pieces: list[Tensor], rows: int, count: int) -> Tensor | None:
    """(rows, count, 3, H, W) of pieces that hold some frames of all rows each, or go through the rows one by one; None
    where they hold another number of frames."""
    if all(len(piece) == rows for piece in pieces) and sum(piece.shape[1] for piece in pieces) == count:
        return torch.cat(pieces, 1)
    flat = [piece.flatten(0, 1) for piece in pieces]
    return torch.cat(flat).unflatten(0, (rows, count)) if sum(map(len, flat)) == rows * count else None
