"""HPSv3: how people like a picture of a prompt, and how far apart they are about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from genalign.files.shipped import shipped
from genalign.reward.base import tensor_rows, texts
from genalign.reward.heads.qwen import PIXELS, QwenTokens
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores


class HpsV3(QwenTokens):
    """score = mu, and std = sigma: N(mu, sigma^2), read at <|Reward|> (HPSv3, arXiv 2508.03789); mu about -5 to 15.

    Head: hidden -> 1024 -> ReLU -> 16 -> ReLU -> (mu, log sigma). Images are resized to about 256*28*28 pixels. The
    instruction is the published one, to the byte: rewards/hpsv3-template.txt, and its licence beside it.
    Gradients flow to the pixels. "<|" in a prompt is written "< |", so that no prompt brings reward tokens of its own.
    """

    needs = frozenset({"image", "prompt"})
    file, tokens, filler, least = "HPSv3.safetensors", ("<|Reward|>",), "<|image_pad|>", PIXELS

    def __init__(
        self,
        model: str | Path,
        *,
        base: str | Path = "Qwen/Qwen2-VL-7B-Instruct",
        template: str | Path | None = None,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        batch_size: int = 4,
        name: str = "hpsv3",
    ) -> None:
        super().__init__(model, base, template or shipped("rewards", "hpsv3-template.txt"), dtype, batch_size, name)
        self.aspects = (name,)

    def head(self, width: int, state: Mapping[str, Tensor]) -> nn.Module:
        return nn.Sequential(
            *(nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05)),
            *(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)),
        )

    def frames(self, media: Media) -> list[Tensor]:
        return [image[None] for image in tensor_rows(media["image"])]

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        outputs = self.read(texts(prompts), self.frames(media))[:, 0].cpu()  # (B,2)
        return all_valid(self.aspects, outputs[:, :1], std=outputs[:, 1:].detach().exp())
