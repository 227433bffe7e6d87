"""LAION's aesthetic predictor v2: a linear stack on a CLIP image embedding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.reward.base import digest, weights_digest
from genalign.reward.heads.clips import TransformersClip, transform_of
from genalign.reward.heads.weights import find_weights, fit, read_weights, weights_file
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores

FILE = "sac+logos+ava1-l14-linearMSE.safetensors"


class Mlp(nn.Module):
    """width -> 1024 -> 128 -> 64 -> 16 -> 1, linear throughout, under the key names of its checkpoints.

    LAION aesthetic v2 and ImageReward were both trained with their ReLUs commented out; dropout is off in use.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)),
            *(nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B,width) -> (B,1)."""
        return self.layers(features)


class Aesthetic(TransformersClip):
    """score = MLP(e / |e|), e the image embedding of CLIP ViT-L/14; about 1 to 10, mostly 4.5 to 7 (LAION, 2022).

    model: the CLIP, in transformers' format. weights: the head's safetensors file, or a folder or hub id that holds
    sac+logos+ava1-l14-linearMSE.safetensors (published as .pth: convert it once). Gradients flow to the pixels. The
    middle is cropped as OpenAI's clip.load does it, by torchvision, which rounds an odd margin to even.

    Raises:
        UsageError: no such model or head, pickled weights, or weights of another shape.
    """

    needs = frozenset({"image"})

    def __init__(
        self, model: str | Path, *, weights: str | Path, batch_size: int = 64, name: str = "aesthetic"
    ) -> None:
        super().__init__(model, batch_size=batch_size, name=name)
        self.head_weights = find_weights(weights, Path())
        if Path(self.head_weights).exists():
            weights_file(self.head_weights, FILE)

    def _transform(self, processor: Any) -> Any:
        from torchvision.transforms import CenterCrop

        return transform_of(processor, CenterCrop)

    @cached_property
    def _head(self) -> nn.Module:
        path = weights_file(self.head_weights, FILE)
        return fit(Mlp(self._loaded[0].clip.config.projection_dim), read_weights(path), path).float()

    @property
    def version(self) -> str:
        net, preprocess, _ = self._loaded
        return digest("aesthetic", self.name, weights_digest(net), weights_digest(self._head), preprocess.settings)

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        seen = self.see(media)
        with torch.autocast(seen.device.type, enabled=False):
            return all_valid(self.aspects, self._head.to(seen.device)(F.normalize(seen, dim=1)).cpu())
