"""VideoReward: how a clip looks, how it moves and whether it is what was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from genalign.reward.base import digest, texts
from genalign.reward.heads.patches import sampled_frames
from genalign.reward.heads.qwen import PIXELS, QwenTokens
from genalign.reward.heads.qwen_files import trained_fps
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores, UsageError

FPS = 2.0  # frames a second that the published VideoReward was trained on


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
