"""Rewards that are a Qwen2-VL with a head on reward tokens of its prompt: HPSv3 (images) and VideoReward (videos)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genalign.files.shipped import shipped
from genalign.reward.base import Stateless, digest, first_missing, tensor_rows, texts, weights_digest
from genalign.reward.guard import in_batches
from genalign.reward.heads.patches import TooSmallError, patches, sampled_frames, smart_size
from genalign.reward.heads.qwen_files import merged, published_names, read_template, trained_fps
from genalign.reward.heads.text_features import context
from genalign.reward.heads.weights import find_weights, fit, from_hub, read_weights, renamed, weights_file
from genalign.reward.prefetch import Prefetch
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores, UsageError

PIXELS = 256 * 28 * 28  # of an image or a frame, at most
FPS = 2.0  # frames a second that the published VideoReward was trained on


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


class VideoReward(QwenTokens):
    """Visual quality, motion quality and text alignment, each at its own token (VideoReward, arXiv 2501.13918).

    scores = raw outputs; their sum is the paper's overall reward once each is normalised (calibrate: published). VQ and
    MQ stand before the prompt in the template, so that they cannot see it. The template is that of the official
    repository and not shipped: give `prompt_template.py:DETAILED_PROMPT_WITH_SPECIAL_TOKEN`. model: a folder with
    model.safetensors (converted from checkpoint-*/model.pth) and model_config.json, whose LoRA weights are merged as
    they load. Frames: `fps` a second of the clip as it was made, evenly spaced, first and last among them, at most
    448*448 pixels. Gradients flow to the pixels. fps: None is what it was trained with, as model_config.json says, or
    else 2; at another one everything seems too fast or too slow, and all scores fall (VideoAlign's issue 21).

    Raises:
        UsageError: fps is not above 0, or not that of model_config.json.
    """

    needs = frozenset({"video", "prompt"})
    aspects = ("VQ", "MQ", "TA")
    file, filler, least = "model.safetensors", "<|video_pad|>", PIXELS // 2
    tokens = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")

    def __init__(
        self,
        model: str | Path,
        *,
        template: str | Path,
        base: str | Path = "Qwen/Qwen2-VL-2B-Instruct",
        fps: float | None = None,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        batch_size: int = 2,
        name: str = "videoreward",
    ) -> None:
        super().__init__(model, base, template, dtype, batch_size, name)
        trained = trained_fps(Path(self.model))
        if fps is not None and not 0 < fps < math.inf:
            raise UsageError(f"fps of reward {name!r} is {fps}; it must be above 0 frames a second")
        if None not in (fps, trained) and fps != trained:
            raise UsageError(
                f"reward {name!r} was trained on {trained:g} frames a second, as its model_config.json says, and "
                f"cannot judge motion at fps: {fps:g}; leave fps out"
            )
        self.fps = float(fps or trained or FPS)

    @property
    def version(self) -> str:
        return super().version if self.fps == FPS else digest(super().version, self.fps)

    def head(self, width: int, state: Mapping[str, Tensor]) -> nn.Module:
        outputs = state.get("rm_head.weight", torch.empty(0)).shape[0]
        if outputs not in (1, 3):
            raise UsageError(f"the head of {self.model} has {outputs} outputs; VideoReward has 1 or 3")
        return nn.Linear(width, outputs, bias=False)

    def frames(self, media: Media) -> list[Tensor]:
        track, chosen = media["video"], []
        for row, held in enumerate(track.held):
            rate = track.rate_of(row)
            if not rate or not rate > 0:
                raise UsageError(f"reward {self.name!r} needs the frames a second of a video; give Track(video, rate)")
            chosen.append(track.row(row, sampled_frames(len(held), rate, self.fps)))
        return chosen

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        outputs = self.read(texts(prompts), self.frames(media)).cpu()  # (B,3,N)
        # A head of three outputs has one for each token; a head of one is the same for all.
        values = outputs.diagonal(dim1=1, dim2=2) if outputs.shape[2] == 3 else outputs[..., 0]
        return all_valid(self.aspects, values)
