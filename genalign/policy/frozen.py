"""A pipeline's components as they are held while an adapter is trained: frozen, laid out, none behind the decoder."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by axes of what is convolved: pictures, videos
BEHIND_DECODER = ("safety_checker", "watermark", "watermarker")


def freeze(pipeline: Any, device: torch.device) -> None:
    """Let no component train or draw, and hold each as `device` computes with it fastest."""
    for module in pipeline.components.values():
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval()
            _lay_out(module, device)


def _lay_out(module: nn.Module, device: torch.device) -> None:
    """Hold an autoencoder in half precision on a CPU channels last, which its kernels take two thirds of the time for,
    and of videos half.

    They round as well, though not alike: where samples are as plain diffusers' to the bit, in float32, it stays as is.
    """
    held = {(device.type, p.dtype.itemsize) for p in module.parameters()}
    if hasattr(module, "decode") and held == {("cpu", 2)}:
        for parameter in module.parameters():
            if parameter.ndim in CHANNELS_LAST:
                parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.ndim])


def leave_off(pipeline: Any) -> list[str]:
    """Drop what stands behind the decoder, and name it: a checker blackens samples and a watermark marks them, both
    without gradients, and neither is part of what is aligned."""
    dropped = []
    for name in BEHIND_DECODER:
        if getattr(pipeline, name, None) is not None:
            setattr(pipeline, name, None)
            dropped.append(name)
            warnings.warn(
                f"{type(pipeline).__name__} is trained and sampled here without its {name}, which would change samples"
                " after they are decoded; put it back where samples are shown to others",
                stacklevel=3,
            )
    return dropped
