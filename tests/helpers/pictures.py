"""Pictures as PIL images and as tensors, and their embeddings by the official path."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from genalign.types import Media, Track


def pictures(rows: int, height: int, width: int) -> tuple[list[Image.Image], Media]:
    """Smooth colours with a hard-edged box and speckle, in both forms."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    drawn = []
    for _ in range(rows):
        picture = 0.5 + 0.5 * np.sin(9 * x[..., None] + 7 * y[..., None] + rng.uniform(0, 6, size=3))
        picture[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 2, size=3)
        picture += 0.1 * rng.standard_normal(picture.shape)
        drawn.append((picture.clip(0, 1) * 255).round().astype(np.uint8))
    tensor = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255
    return [Image.fromarray(one) for one in drawn], Media(image=Track(tensor))


def official_embeddings(
    folder: Path, drawn: list[Image.Image], asked: list[str]
) -> tuple[CLIPModel, torch.Tensor, torch.Tensor]:
    """PickScore's model card: the processor on PIL images and texts cut at the context, embeddings of length 1."""
    from transformers import CLIPImageProcessor

    net = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    longest = net.config.text_config.max_position_embeddings
    read = tokenizer(asked, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        seen = net.get_image_features(**processor(images=drawn, return_tensors="pt")).pooler_output
        said = net.get_text_features(input_ids=read.input_ids, attention_mask=read.attention_mask).pooler_output
    return net, seen / seen.norm(dim=-1, keepdim=True), said / said.norm(dim=-1, keepdim=True)


def photographs(rows: int, height: int, width: int) -> list[Image.Image]:
    rng = np.random.default_rng(height + width)
    low = (rng.random((rows, height // 8 + 1, width // 8 + 1, 3)) * 255).astype(np.uint8)
    return [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in low]


def as_tensor(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([torch.from_numpy(np.array(one)) for one in pictures]).permute(0, 3, 1, 2).float() / 255
