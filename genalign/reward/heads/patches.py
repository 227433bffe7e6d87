"""Pixels as Qwen2-VL reads them: sizes in multiples of its patches, frames in pairs; differentiable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genalign.media.image import resize
from genalign.types import UsageError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FEWEST, MOST = 4, 768  # frames of a video
NARROWEST = 200  # times that one side may be the other


class TooSmallError(UsageError):
    """A picture that is too narrow, or a video that is too short: a fault of one row."""


def smart_size(height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """Height and width as multiples of `factor`, with least <= height * width <= most where the aspect ratio allows it.

    (qwen-vl-utils' smart_resize.)

    Raises:
        TooSmallError: one side is over 200 times the other.
    """
    if max(height, width) > NARROWEST * min(height, width):
        raise TooSmallError(f"a picture of {height}x{width} is too narrow for Qwen2-VL; crop it")
    tall, wide = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return tall, wide


def sampled_frames(total: int, rate: float, wanted: float) -> list[int]:
    """Which of `total` frames at `rate` a second are read at `wanted` a second: an even number, first and last among
    them (qwen-vl-utils' smart_nframes, VideoAlign's "uniform").

    Raises:
        TooSmallError: fewer than 2 frames.
    """
    most = min(MOST, total) // 2 * 2
    count = min(max(total / rate * wanted, FEWEST), most)
    count = min(round(count / 2) * 2, total)
    if count < 2:
        raise TooSmallError(f"a video of {total} frames is too short to be scored; 2 are the least")
    return torch.linspace(0, total - 1, count).round().long().tolist()


def patches(frames: Tensor, patch: int, merge: int, pair: int, least: int, most: int) -> tuple[Tensor, list[int]]:
    """Frames (F,3,H,W) in [0,1] -> patches (N, 3*pair*patch*patch), and how many in time, height and width.

    Bicubic, antialiased, clamped to [0,1], normalised as CLIP. A last group shorter than `pair` repeats its last
    frame (a single image is read twice). The order is Qwen2-VL's: merge x merge patches stand together.
    """
    height, width = smart_size(frames.shape[-2], frames.shape[-1], patch * merge, least, most)
    frames = resize(frames, height, width)
    frames = (frames - frames.new_tensor(MEAN)[:, None, None]) / frames.new_tensor(STD)[:, None, None]
    missing = -len(frames) % pair
    frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]) if missing else frames
    time, tall, wide = len(frames) // pair, height // patch, width // patch
    split = frames.reshape(time, pair, 3, tall // merge, merge, patch, wide // merge, merge, patch)
    return split.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(time * tall * wide, -1), [time, tall, wide]
