"""What rewards share that are a Qwen2-VL with a head on reward tokens of its prompt, as HPSv3 and VideoReward are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genalign.reward.base import Stateless, digest, first_missing, weights_digest
from genalign.reward.guard import in_batches
from genalign.reward.heads.patches import TooSmallError, patches, smart_size
from genalign.reward.heads.qwen_files import merged, published_names, read_template
from genalign.reward.heads.text_features import context
from genalign.reward.heads.weights import find_weights, fit, from_hub, read_weights, renamed, weights_file
from genalign.reward.prefetch import Prefetch
from genalign.types import Media, Prompt, UsageError

PIXELS = 256 * 28 * 28  # of an image or a frame, at most


class TokenHead(nn.Module):
    """Qwen2-VL without its language head, and `rm_head` on its hidden states."""

    def __init__(self, config: Any, head: nn.Module) -> None:
        super().__init__()
        from transformers import Qwen2VLModel

        self.model = Qwen2VLModel(config)
        self.rm_head = head

    def forward(self, ids: Tensor, mask: Tensor, pixels: Tensor, grid: Tensor, filler: int, read: list[int]) -> Tensor:
        """(B,T), (B,T), patches (N,P), (B,3) -> (B, len(read), outputs): the head at the tokens `read`, in fp32.

        `filler` is the token whose places the patches take. Positions count up over pictures and words alike: both
        checkpoints were trained with transformers 4.45, whose forward pass made no three-axis positions of its own.
        """
        embedded = self.model.language_model.embed_tokens(ids)
        visual = self.model.visual(pixels.to(embedded.dtype), grid_thw=grid).pooler_output
        embedded = embedded.masked_scatter((ids == filler)[..., None], visual.to(embedded.dtype))
        hidden = self.model.language_model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        places = torch.stack([(ids == token).long().argmax(1) for token in read], dim=1)  # (B,S)
        return self.rm_head(hidden[torch.arange(len(ids))[:, None], places].float())


class QwenTokens(Stateless):
    """What HPSv3 and VideoReward share: the prompt, the patches, the forward pass.

    model: a folder or hub id with the weights, or the file. base: the folder or hub id that the tokenizer and
    config.json are read from. template: a text with {text_prompt} and the reward tokens: a .txt, or `file.py:NAME`, a
    string constant that is read out of a file and never run. dtype: of the backbone; the head is in fp32.

    Raises:
        UsageError: no such model, base or template, a template without the reward tokens, or weights that do not fit.
    """

    looks_at = "sample"
    differentiable = True
    file: str  # the weights, within `model`
    tokens: tuple[str, ...]  # what the head reads, in this order
    filler: str  # the token that stands for pixels
    least: int  # pixels of a picture or a frame

    def __init__(
        self,
        model: str | Path,
        base: str | Path,
        template: str | Path,
        dtype: Literal["float32", "bfloat16"],
        batch_size: int,
        name: str,
    ) -> None:
        self.model, self.base = find_weights(model, Path()), find_weights(base, Path())
        self.template = read_template(template)
        absent = first_missing((*self.tokens, "{text_prompt}"), self.template)
        if absent:
            raise UsageError(f"the template {template} of reward {name!r} lacks {absent}; give the published one")
        if dtype not in ("float32", "bfloat16"):
            raise UsageError(f"reward {name!r} has no dtype {dtype!r}; float32 or bfloat16")
        self.dtype, self.batch_size, self.name = dtype, batch_size, name
        if Path(self.model).exists():
            weights_file(self.model, self.file)

    def head(self, width: int, state: Mapping[str, Tensor]) -> nn.Module:
        """The head as the checkpoint has it."""
        raise NotImplementedError

    @cached_property
    def _loaded(self) -> tuple[TokenHead, Any]:
        from accelerate import init_empty_weights
        from transformers import AutoTokenizer, Qwen2VLConfig

        path = weights_file(self.model, self.file)
        state = renamed(merged(read_weights(path), path.parent / "model_config.json"), published_names)
        tokenizer, config = from_hub(AutoTokenizer, self.base), from_hub(Qwen2VLConfig, self.base)
        tokenizer.add_tokens(list(self.tokens), special_tokens=True)
        words = state.get("model.language_model.embed_tokens.weight", torch.empty(0)).shape[0]
        if words != len(tokenizer):
            raise UsageError(
                f"{path} knows {words} words, but the tokenizer of {self.base} and its reward tokens are "
                f"{len(tokenizer)}; name the base that it was trained from"
            )
        config.text_config.vocab_size = words
        with init_empty_weights(include_buffers=False):
            net = TokenHead(config, self.head(config.text_config.hidden_size, state))
        fit(net, state, path)
        for key, buffer in net.named_buffers():
            if key.endswith("inv_freq"):  # trained after model.to(bfloat16), which rounds the rotary frequencies too
                buffer.copy_(buffer.bfloat16())
        net.model.to(getattr(torch, self.dtype))
        net.rm_head.float()
        return net, tokenizer

    @property
    def version(self) -> str:
        return digest(type(self).__name__, self.name, weights_digest(self._loaded[0]), self.template, self.dtype)

    def frames(self, media: Media) -> list[Tensor]:
        """Of each row the frames (F,3,H,W) in [0,1] that are read.

        Raises:
            UsageError: there are too few.
        """
        raise NotImplementedError

    def faults(self, prompts: Sequence[Prompt], media: Media) -> list[str | None]:
        """Also: a picture too narrow, a video too short, or more tokens than the model's context."""
        faults = super().faults(prompts, media)
        net, tokenizer = self._loaded
        longest, merge = context(net.model.language_model), self._shape.spatial_merge_size
        for row, prompt in enumerate(prompts):
            if faults[row]:
                continue
            try:
                (frames,) = self.frames(media.select([row]))
                height, width = frames.shape[-2:]
                size = smart_size(height, width, self._shape.patch_size * merge, self.least, PIXELS)
            except TooSmallError as error:
                faults[row] = str(error)
                continue
            pairs = math.ceil(len(frames) / self._shape.temporal_patch_size)
            written = self._write(prompt.text, pairs * math.prod(size) // (self._shape.patch_size * merge) ** 2)
            tokens = len(tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"])
            if tokens > longest:
                faults[row] = f"picture and prompt are {tokens} tokens, and the model reads {longest}; shorten them"
        return faults

    @property
    def _shape(self) -> Any:
        return self._loaded[0].model.config.vision_config

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        return (in_batches(self, self.batch_size),)

    def read(self, prompts: Sequence[str], rows: Sequence[Tensor]) -> Tensor:
        """The head's outputs (B,S,N) for frames (F,3,H,W) in [0,1], one tensor a row; batch by batch."""
        outputs = []
        for at in range(0, len(rows), self.batch_size):
            part = slice(at, at + self.batch_size)
            outputs.append(self._read(prompts[part], rows[part]))
        return torch.cat(outputs)

    def _read(self, prompts: Sequence[str], rows: Sequence[Tensor]) -> Tensor:
        net, tokenizer = self._loaded
        net.to(rows[0].device)
        shape = self._shape
        pixels, grids, written = [], [], []
        for prompt, frames in zip(prompts, rows, strict=True):
            sizes = (shape.patch_size, shape.spatial_merge_size, shape.temporal_patch_size, self.least, PIXELS)
            cut, grid = patches(frames.float(), *sizes)
            pixels.append(cut)
            grids.append(grid)
            written.append(self._write(prompt, math.prod(grid) // shape.spatial_merge_size**2))
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in written]
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(row), dtype=torch.long) for row in ids], batch_first=True
        )
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
        filler, *read = tokenizer.convert_tokens_to_ids([self.filler, *self.tokens])
        device = rows[0].device
        with torch.autocast(device.type, enabled=False):
            return net(
                padded.to(device), mask.to(device), torch.cat(pixels), torch.tensor(grids, device=device), filler, read
            )

    def _write(self, prompt: str, fillers: int) -> str:
        kind = "video" if "video" in self.filler else "image"
        # "<|" is broken up, so that a prompt cannot bring special tokens of its own.
        instruction = self.template.replace("{text_prompt}", prompt.replace("<|", "< |"))
        content = [{"type": kind}, {"type": "text", "text": instruction}]
        tokenizer = self._loaded[1]
        if not tokenizer.chat_template:
            raise UsageError(f"the tokenizer of {self.base} has no chat template; name a Qwen2-VL-Instruct")
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return chat.replace(self.filler, self.filler * fillers)
