"""How sharp an image is, by a formula: no network, no weights, differentiable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.reward.base import Stateless, digest, image_batches
from genalign.reward.scores import readable_rows
from genalign.types import Media, Prompt, Scores

LUMA = (0.299, 0.587, 0.114)  # Rec. 601
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class Sharpness(Stateless):
    """score = v / (v + half) in [0,1), with v the variance of the Laplacian of the luma (Pech-Pacheco et al., 2000).

    half: the variance that scores 1/2, in squared units of [0,1] pixels; 0.01 is a drawing with crisp edges. Noise is
    sharp too: combine this measure with others.
    """

    needs = frozenset({"image"})
    looks_at = "sample"
    differentiable = True

    def __init__(self, *, half: float = 0.01, name: str = "sharpness") -> None:
        self.half, self.name, self.aspects = float(half), name, (name,)

    @property
    def version(self) -> str:
        return digest("sharpness", self.name, self.half)

    def faults(self, prompts: Sequence[Prompt], media: Media) -> list[str | None]:
        faults = super().faults(prompts, media)
        for row, image in enumerate(media["image"].held):
            if isinstance(image, Tensor) and min(image.shape[-2:]) < len(LAPLACIAN):
                faults[row] = faults[row] or f"an image of {image.shape[-2]}x{image.shape[-1]} pixels has no edges"
        return faults

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        images = image_batches(media, len(prompts))
        variance = torch.cat([_edges(part).flatten(1).var(1, correction=0) for part in images]).cpu()
        value = variance / (variance + self.half)
        valid = torch.ones(len(prompts), 1, dtype=torch.bool)
        return Scores(self.aspects, value[:, None], valid, ~valid, value, valid[:, 0], torch.ones(1))


def _edges(images: Tensor) -> Tensor:
    """(B,3,H,W) -> the Laplacian of the luma, (B,1,H-2,W-2)."""
    luma = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)  # (B,1,H,W)
    return F.conv2d(luma, images.new_tensor(LAPLACIAN)[None, None])
