"""Which of some texts CLIP takes a picture for, whatever its prompt: CLIP-IQA's quality, and any pair of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.reward.base import digest
from genalign.reward.heads.clips import TransformersClip
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores, UsageError


class ClipTexts(TransformersClip):
    """score = softmax over `texts` of scale cos(image, text), at the first one, in [0,1]; gradients flow to the pixels.

    CLIP-IQA (arXiv 2207.12396) is scale 100 with "Good photo." and "Bad photo."; other pairs of its table are "Sharp
    photo." and "Blurry photo.", "Natural photo." and "Synthetic photo.". texts: the wanted one first, then what it is
    told from. The rest is as in TransformersClip.

    Departs from the paper: the picture is resized and cropped as CLIP's own preprocessing has it, and position
    embeddings stay (as torchmetrics has it with these models), where the paper reads any size by a ResNet without them.

    Raises:
        UsageError: fewer than two texts, or what TransformersClip raises.
    """

    needs = frozenset({"image"})

    def __init__(
        self,
        model: str | Path,
        *,
        texts: Sequence[str],
        processor: str | Path | None = None,
        scale: float = 100.0,
        batch_size: int = 64,
        name: str = "clip-texts",
    ) -> None:
        super().__init__(model, processor=processor, scale=scale, batch_size=batch_size, name=name)
        if isinstance(texts, str) or len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
            raise UsageError(f"texts of reward {name!r} is {texts!r}; write a list of two texts or more")
        self.texts = tuple(texts)

    @property
    def version(self) -> str:
        return digest("clip-texts", super().version, self.texts)

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        seen = self.see(media)
        with torch.autocast(seen.device.type, enabled=False):
            cosine = F.normalize(seen, dim=1) @ F.normalize(self.read(self.texts, seen.device), dim=1).T  # (B,T)
            return all_valid(self.aspects, (self.scale * cosine).softmax(1)[:, :1].cpu())
