"""How likely a picture is of one class, by any image classifier of transformers: safe to show, for example."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genalign.media.image import to_pil
from genalign.reward.base import Stateless, digest, tensor_rows, weights_digest
from genalign.reward.heads.weights import find_weights, from_hub
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores, UsageError, nearest


class ImageClass(Stateless):
    """score = p(label | image) of AutoModelForImageClassification, in [0,1], by its own preprocessing; no gradients.

    label: one of its config's. batch_size: pictures a forward pass (its memory, not its result). device: "cuda" where
    there is one (None). Pictures are rounded to 8 bits, as its processor takes them.

    Raises:
        UsageError: no such model, pickled weights, or (when first used) no such label.
    """

    needs = frozenset({"image"})
    looks_at = "sample"
    differentiable = False

    def __init__(
        self,
        model: str | Path,
        *,
        label: str,
        batch_size: int = 16,
        device: str | None = None,
        name: str = "image-class",
    ) -> None:
        self.model, self.label, self.batch_size = find_weights(model, Path()), str(label), batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.name, self.aspects = name, (name,)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        net = from_hub(AutoModelForImageClassification, self.model)
        labels = {str(label): int(place) for place, label in net.config.id2label.items()}
        if self.label not in labels:
            raise UsageError(f"{self.model} has no label {self.label!r}{nearest(self.label, labels)}")
        return net.to(self.device), from_hub(AutoImageProcessor, self.model), labels[self.label]

    @property
    def version(self) -> str:
        net, processor, place = self._loaded
        return digest("image-class", self.name, weights_digest(net), processor.to_dict(), place)

    @readable_rows
    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        net, processor, place = self._loaded
        pictures = [to_pil(picture.float().cpu()) for picture in tensor_rows(media["image"])]
        likely = []
        for at in range(0, len(pictures), self.batch_size):
            inputs = processor(images=pictures[at : at + self.batch_size], return_tensors="pt").to(self.device)
            likely.append(net(**inputs).logits.float().softmax(1)[:, place].cpu())
        return all_valid(self.aspects, torch.cat(likely)[:, None])
