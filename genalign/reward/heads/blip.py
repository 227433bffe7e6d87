"""ImageReward: BLIP reads the prompt while it looks at the image; an MLP reads its first token."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genalign.reward.base import Stateless, cut_info, digest, image_batches, texts, weights_digest
from genalign.reward.guard import in_batches
from genalign.reward.heads.aesthetic import Mlp
from genalign.reward.heads.clip import on_tensors
from genalign.reward.heads.text_features import too_long
from genalign.reward.heads.weights import find_weights, fit, from_hub, read_weights, weights_file
from genalign.reward.prefetch import Prefetch
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores

FILE = "ImageReward.safetensors"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores over the authors' data; part of the model
WORDS = 35  # tokens, padded to as many
PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
VISION = {  # BLIP's names of a vision block's parts -> transformers'
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class BlipRegressor(nn.Module):
    """transformers' BLIP vision and text towers, the text attending to the image, and the linear stack of v1.0.

    vision and text: arguments of BlipVisionConfig and BlipTextConfig; those of ImageReward-v1.0 are the defaults.
    """

    def __init__(self, vision: Mapping[str, Any] | None = None, text: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        large: Mapping[str, Any] = {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        }
        seen = BlipVisionConfig(image_size=224, patch_size=16, layer_norm_eps=1e-6, **(vision or large))
        base: Mapping[str, Any] = {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        }
        words = {"vocab_size": 30524, "encoder_hidden_size": seen.hidden_size, "layer_norm_eps": 1e-12}
        read = BlipTextConfig(**{**words, **(text or base)})
        self.image_size = seen.image_size
        self.vision = BlipVisionModel(seen)
        self.text = BlipTextModel(read, add_pooling_layer=False)
        self.mlp = Mlp(read.hidden_size)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B,3,H,W) normalised, (B,T), (B,T) -> (B,)."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False)
        return (self.mlp(read.last_hidden_state[:, 0])[:, 0] - MEAN) / STD


def published_names(key: str) -> str:
    """A key of ImageReward.pt in BlipRegressor's names."""
    key = key.removeprefix("blip.")
    if not key.startswith("visual_encoder."):
        return key.replace("text_encoder.", "text.", 1)
    key = key.removeprefix("visual_encoder.")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key)
    if block:
        return f"vision.encoder.layers.{block[1]}.{VISION[block[2]]}.{block[3]}"
    key = re.sub(r"^norm\.", "post_layernorm.", key).replace("patch_embed.proj", "embeddings.patch_embedding")
    return "vision." + key.replace("cls_token", "embeddings.class_embedding").replace(
        "pos_embed", "embeddings.position_embedding"
    )


class ImageReward(Stateless):
    """score = (MLP(h_0) - 0.16717) / 1.03334, h_0 BLIP's first token; about N(0,1) (arXiv 2304.05977, section 3).

    model: a folder or hub id with ImageReward.safetensors (published as .pt: convert it once). tokenizer: the one of
    bert-base-uncased. Prompts are cut at 35 tokens. Gradients flow to the pixels (the official score_gard).

    Departs from the official code: pixels stay float through resize, crop and normalisation.

    Raises:
        UsageError: no such model or tokenizer, pickled weights, or weights of another shape.
    """

    needs = frozenset({"image", "prompt"})
    looks_at = "sample"
    differentiable = True

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | Path = "google-bert/bert-base-uncased",
        vision: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        batch_size: int = 32,
        name: str = "imagereward",
    ) -> None:
        self.model, self.tokenizer = find_weights(model, Path()), find_weights(tokenizer, Path())
        self.sizes, self.batch_size, self.name, self.aspects = (vision, text), batch_size, name, (name,)
        if Path(self.model).exists():
            weights_file(self.model, FILE)

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        from accelerate import init_empty_weights
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize
        from transformers import AutoTokenizer

        path = weights_file(self.model, FILE)
        with init_empty_weights(include_buffers=False):
            net = BlipRegressor(*self.sizes)
        fit(net, {published_names(key): value.float() for key, value in read_weights(path).items()}, path)
        size = net.image_size
        steps = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size), Normalize(*PIXELS)])
        return net, on_tensors(steps), from_hub(AutoTokenizer, self.tokenizer)

    @property
    def version(self) -> str:
        return digest("imagereward", self.name, weights_digest(self._loaded[0]))

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        return (in_batches(self, self.batch_size),) if "image" in modalities else ()

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        net, preprocess, tokenizer = self._loaded
        images = image_batches(media, self.batch_size)
        device = images[0].device
        net.to(device)
        read = tokenizer(texts(prompts), padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt")
        values, at = [], 0
        with torch.autocast(device.type, enabled=False):
            for part in images:
                rows = slice(at, at + len(part))
                tokens, mask = (read[key][rows].to(device) for key in ("input_ids", "attention_mask"))
                values.append(net(preprocess(part), tokens, mask))
                at += len(part)
        cut = cut_info(self.name, too_long(tokenizer, texts(prompts), WORDS))
        return all_valid(self.aspects, torch.cat(values)[:, None].cpu(), info=cut)
