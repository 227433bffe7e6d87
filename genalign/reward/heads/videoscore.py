"""VideoScore2: a Qwen2.5-VL that thinks about a clip and then writes three scores (arXiv 2509.22799)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genalign.files.untrusted import check_model
from genalign.media.image import resize
from genalign.reward.base import ScoringError, Stateless, digest, weights_digest
from genalign.reward.heads.patches import TooSmallError, sampled_frames, smart_size
from genalign.reward.heads.weights import find_weights
from genalign.reward.scores import readable_rows
from genalign.types import Media, Prompt, Scores, UsageError

QUESTION = """
    You are an expert for evaluating AI-generated videos from three dimensions:
    (1) visual quality – clarity, smoothness, artifacts;
    (2) text-to-video alignment – fidelity to the prompt;
    (3) physical/common-sense consistency – naturalness and physics plausibility.

    Video prompt: {prompt}

    Please output in this format:
    visual quality: <v_score>;
    text-to-video alignment: <t_score>,
    physical/common-sense consistency: <p_score>
    """  # of the card of the weights (Apache-2.0), dashes and spaces included
WRITTEN = {
    "VQ": "visual quality",
    "TA": "text-to-video alignment",
    "PC": "physical/common-sense consistency",
}  # in the order in which they are written
DIGITS = ("1", "2", "3", "4", "5")
LEAST, MOST = 128 * 28 * 28, 768 * 28 * 28  # pixels of a frame: those of qwen-vl-utils for videos


class VideoScore2(Stateless):
    """Visual quality (VQ), text alignment (TA) and physical consistency (PC), each in 1 to 5; the total is their mean.

    Each score is sum_d d p(d) over the digits 1 to 5, p their share of the next token's probability where the answer
    writes that score: after its name and a colon, the last time that it does. A row whose answer lacks one has failed.
    model: a folder or hub id. Frames: `fps` a second of the clip as it was made, evenly spaced, first and last among
    them. dtype: in which it computes. max_tokens: of an answer, thoughts included.

    Departs from the official script: (1) greedy, where it samples at temperature 0.7. (2) The expected digit, where it
    has the likeliest one times its share, which puts an unsure 3 below a sure 2. (3) Its pattern misses the scores that
    the released model writes ("visual quality – clarity, ...: 3"); this one does not.

    Raises:
        UsageError: no such model, fps that is not above 0, or a tokenizer without a token for each digit.
    """

    needs = frozenset({"video", "prompt"})
    looks_at = "sample"
    differentiable = False
    aspects = tuple(WRITTEN)
    weights = (1 / 3, 1 / 3, 1 / 3)

    def __init__(
        self,
        model: str | Path = "TIGER-Lab/VideoScore2",
        *,
        fps: float = 2.0,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        max_tokens: int = 1024,
        name: str = "videoscore2",
    ) -> None:
        if not fps > 0:
            raise UsageError(f"fps of reward {name!r} is {fps}; it must be above 0 frames a second")
        if dtype not in ("float32", "bfloat16"):
            raise UsageError(f"reward {name!r} has no dtype {dtype!r}; float32 or bfloat16")
        self.model, self.fps, self.dtype = find_weights(model, Path()), float(fps), dtype
        self.max_tokens, self.name = int(max_tokens), name

    @cached_property
    def _loaded(self) -> tuple[Any, Any, list[int]]:
        """The net, its processor, and the tokens of the digits."""
        import transformers as hf

        check_model(self.model)
        plain = {"trust_remote_code": False}
        try:
            net = hf.AutoModelForImageTextToText.from_pretrained(
                self.model, use_safetensors=True, dtype=getattr(torch, self.dtype), **plain
            )
            processor = hf.AutoProcessor.from_pretrained(self.model, **plain)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"reward {self.model} cannot be loaded: {' '.join(str(error).split())}") from error
        spelled = [processor.tokenizer.encode(digit, add_special_tokens=False) for digit in DIGITS]
        if any(len(tokens) != 1 for tokens in spelled):
            raise UsageError(f"the tokenizer of {self.model} has no single token for a digit; name a VideoScore2")
        return net.eval().requires_grad_(False), processor, [token for (token,) in spelled]

    @property
    def version(self) -> str:
        net = weights_digest(self._loaded[0])
        return digest("videoscore2", self.name, net, self.fps, self.dtype, self.max_tokens, QUESTION)

    def faults(self, prompts: Sequence[Prompt], media: Media) -> list[str | None]:
        """Also: a video too short, or too narrow."""
        faults = super().faults(prompts, media)
        for row in range(len(prompts) if "video" in media else 0):
            if not faults[row]:
                try:
                    self._chosen(media, row)
                except TooSmallError as error:
                    faults[row] = str(error)
        return faults

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        values = torch.zeros(len(prompts), len(self.aspects))
        failed, errors = torch.zeros(len(prompts), dtype=torch.bool), []
        for row, prompt in enumerate(prompts):
            found = self._scored(prompt.text, media, row)
            failed[row] = isinstance(found, ScoringError)
            errors.append(str(found) if isinstance(found, ScoringError) else None)
            if not isinstance(found, ScoringError):
                values[row] = torch.tensor(found)
        columns = failed[:, None].expand_as(values).clone()
        weights = torch.tensor(self.weights)
        info = {"error": errors} if failed.any() else {}
        return Scores(self.aspects, values, ~columns, columns, values @ weights, ~failed, weights, info=info)

    @torch.no_grad()
    def _scored(self, prompt: str, media: Media, row: int) -> list[float] | ScoringError:
        """The three scores of one clip, or why there are none."""
        net, processor, digits = self._loaded
        device = media["video"].row(row, [0]).device
        inputs = self._inputs(prompt, media, row).to(net.to(device).device)
        seen: list[Tensor] = []  # of each token that is written, the logits of the digits before it was chosen

        def watch(ids: Tensor, logits: Tensor) -> Tensor:
            seen.append(logits[0, digits].float().cpu())
            return logits

        made = net.generate(
            **inputs, do_sample=False, max_new_tokens=self.max_tokens, logits_processor=[watch],
            pad_token_id=processor.tokenizer.pad_token_id,
        )  # fmt: skip
        written = made[0, inputs["input_ids"].shape[1] :].tolist()
        places = score_places(written, digits, processor.tokenizer.decode)
        missing = [name for name in self.aspects if name not in places]
        if missing:
            tail = processor.tokenizer.decode(written[-20:], skip_special_tokens=True)
            return ScoringError(f"the answer holds no score of {WRITTEN[missing[0]]} from 1 to 5; it ends {tail!r}")
        values = torch.arange(1.0, len(digits) + 1)
        return [float(seen[places[name]].softmax(0) @ values) for name in self.aspects]

    def _inputs(self, prompt: str, media: Media, row: int) -> Any:
        from transformers.video_utils import VideoMetadata

        processor = self._loaded[1]
        frames = self._chosen(media, row)
        # "<|" is broken up, so that a prompt cannot bring special tokens of its own.
        question = QUESTION.replace("{prompt}", prompt.replace("<|", "< |"))
        content = [{"type": "video"}, {"type": "text", "text": question}]
        chat = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        made_at = VideoMetadata(total_num_frames=len(frames), fps=self.fps)
        return processor(
            text=[chat], videos=[frames * 255], video_metadata=[made_at], do_sample_frames=False, do_resize=False,
            return_tensors="pt",
        )  # fmt: skip

    def _chosen(self, media: Media, row: int) -> Tensor:
        """The frames (F,3,H,W) in [0,1] that are read, in sides of whole patches.

        Raises:
            UsageError: the clip's frame rate is not known. TooSmallError: too few frames, or too narrow.
        """
        track, vision = media["video"], self._loaded[0].config.vision_config
        rate, held = track.rate_of(row), track.held[row]
        if not rate or not rate > 0:
            raise UsageError(f"reward {self.name!r} needs the frames a second of a video; give Track(video, rate)")
        side = vision.patch_size * vision.spatial_merge_size
        size = smart_size(held.shape[-2], held.shape[-1], side, LEAST, MOST)
        return resize(track.row(row, sampled_frames(len(held), rate, self.fps)).float(), *size)


def score_places(written: Sequence[int], digits: Sequence[int], decode: Any) -> dict[str, int]:
    """Aspect -> which of the tokens `written` is its score: a digit alone that follows its name, more words of the same
    line or none, and a colon; the last such one."""
    places: dict[str, int] = {}
    for at, token in enumerate(written):
        if token not in digits:
            continue
        before = decode(written[:at], skip_special_tokens=True)
        alone = at + 1 == len(written) or not decode(written[at + 1 : at + 2]).strip()[:1].isdigit()
        for aspect, name in WRITTEN.items():
            if re.search(rf"{re.escape(name)}[^:\n]*:[\s*]*$", before, re.IGNORECASE) and alone:
                places[aspect] = at
    return places
