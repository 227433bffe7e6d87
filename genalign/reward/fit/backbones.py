"""Frozen backbones of fitted rewards: prompts and media in, one row of features a sample out."""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.data.judged import Kind
from genalign.reward.base import digest, resolve_model, texts
from genalign.reward.fit.backbone_settings import BackboneSettings
from genalign.reward.fit.moving import clip_features, read_frames
from genalign.reward.fit.transformer_features import TextFeatures, VlmFeatures
from genalign.reward.heads.clip import REMEMBERED, ClipReward
from genalign.types import Media, Prompt, Track, UsageError

FRAMES = 2.0  # a second, that are taken of a video
WORD = re.compile(r"\w+")


class Backbone(Protocol):
    """features: (B,H) fp32, with gradients to the media where differentiable. cut: which rows' texts it had to cut.
    faults (B,): why a row has no features, None of the others.

    of_prompt: how many of the H, the last ones, come of the prompt; 0 where sample and prompt are read as one.
    """

    needs: frozenset[str]
    differentiable: bool

    @property
    def of_prompt(self) -> int: ...

    @property
    def version(self) -> str: ...

    def features(self, prompts: Sequence[Prompt], media: Media) -> Tensor: ...

    def cut(self, prompts: Sequence[Prompt], media: Media) -> list[bool]: ...

    def faults(self, media: Media, rows: int) -> list[str | None]: ...


def build_backbone(settings: BackboneSettings, reads: Kind, folder: Path) -> Backbone:
    """The backbone for samples that are images, videos or texts; it loads when it is first used.

    Raises:
        UsageError: it cannot read such samples, no such model, or a pool without its token.
    """
    if (settings.pool == "token") != (settings.token is not None):
        raise UsageError("backbone.pool: token and backbone.token go together; set both or neither")
    cures = {"video": "clip, which reads their frames", "image": "clip or vlm", "text": "text or vlm"}
    if reads not in cures:
        raise UsageError(f"no backbone reads a sample of {reads} yet; known are {', '.join(cures)}")
    if settings.kind not in cures[reads]:
        raise UsageError(
            f"backbone {settings.kind} does not read a sample of {reads}; set backbone.kind: {cures[reads]}"
        )
    if settings.motion and reads != "video":
        raise UsageError(f"backbone.motion is about videos, but the samples are of {reads}; leave it out")
    if settings.words and not settings.prompt:
        raise UsageError("backbone.words are those of the prompt; set backbone.prompt: true or leave them out")
    model = resolve_model(settings.model, folder)
    if settings.kind == "clip":
        return ClipFeatures(model, settings, reads)
    return TextFeatures(model, settings) if settings.kind == "text" else VlmFeatures(model, settings, reads)


class ClipFeatures:
    """(v, t, v t) of the picture's v and the prompt's t, each (E,) of length 1: their cosine is the sum of v t. Or v.

    A video's v is the mean over its frames', FRAMES of each second. With motion the last frame's v less the first's,
    and the features of moving.py, follow it; with words a count of them, of length 1, stands last.
    """

    differentiable = True

    def __init__(self, model: str, settings: BackboneSettings, reads: Kind = "image") -> None:
        self.clip = ClipReward(model, batch_size=settings.batch_size)
        self.prompt, self.reads = settings.prompt, reads
        self.motion, self.words = settings.motion, settings.words
        self._clips: dict[str | None, Tensor] = {}
        self.needs = frozenset({reads, *(["prompt"] if settings.prompt else [])})

    @property
    def version(self) -> str:
        sampled = [FRAMES] if self.reads == "video" else []
        more = [{"motion": self.motion, "words": self.words}] if self.motion or self.words else []
        return digest("clip", self.clip.version, self.prompt, self.reads, *sampled, *more)

    @property
    def of_prompt(self) -> int:
        return 2 * self.clip.read([""]).shape[1] + self.words if self.prompt else 0

    def features(self, prompts: Sequence[Prompt], media: Media) -> Tensor:
        watched = self._watched(media["video"]) if self.reads == "video" else self._see(media)
        if not self.prompt:
            return watched
        t = F.normalize(self.clip.read(texts(prompts), watched.device), dim=1)
        words = [word_counts(texts(prompts), self.words).to(t.device)] if self.words else []
        return torch.cat([watched, t, watched[:, : t.shape[1]] * t, *words], 1)

    def cut(self, prompts: Sequence[Prompt], media: Media) -> list[bool]:
        return self.clip.cut(texts(prompts)) if self.prompt else [False] * len(prompts)

    def faults(self, media: Media, rows: int) -> list[str | None]:
        if not self.motion or "video" not in media:
            return [None] * rows
        few = "a video of one frame shows no motion; 2 are the least"
        return [few if len(held) < 2 else None for held in media["video"].held]

    def _watched(self, track: Track) -> Tensor:
        """(B,...) of videos. Those of levels, as files have them, are watched once, however many prompts they have."""
        keys = [_clip_key(held, track.rate_of(row)) for row, held in enumerate(track.held)]
        fresh = [row for row, key in enumerate(keys) if key is None or key not in self._clips]
        new = dict(zip(fresh, self._watch(track.select(fresh)), strict=True)) if fresh else {}
        rows = [new[row] if row in new else self._clips[keys[row]] for row in range(len(keys))]
        self._clips |= {keys[row]: values for row, values in new.items() if keys[row] is not None}
        while len(self._clips) > REMEMBERED:
            self._clips.pop(next(iter(self._clips)))
        return torch.stack(rows)

    def _watch(self, track: Track) -> Tensor:
        shown = [track.row(row, nearest_frames(len(held), track.rate_of(row))) for row, held in enumerate(track.held)]
        alike = len({frames.shape[1:] for frames in shown}) == 1
        seen = self._see(Media(image=Track(torch.cat(shown) if alike else [each for row in shown for each in row])))
        by_row = seen.split([len(frames) for frames in shown])
        v = torch.stack([rows.mean(0) for rows in by_row])
        if not self.motion:
            return v
        moving = []
        for row, held in enumerate(track.held):
            moving.append(clip_features(track.row(row, read_frames(len(held))).float(), len(held)))
        return torch.cat([v, torch.stack([rows[-1] - rows[0] for rows in by_row]), torch.stack(moving)], 1)

    def _see(self, media: Media) -> Tensor:
        return F.normalize(self.clip.see(media), dim=1).float()


def nearest_frames(total: int, rate: float | None, wanted: float = FRAMES) -> list[int]:
    """Of `total` frames at `rate` a second the ones nearest to the times 0, 1/wanted, 2/wanted ...; all of a slower
    video, or of one whose rate is not known."""
    if rate is None or rate <= wanted:
        return list(range(total))
    count = math.ceil((total - 0.5) / rate * wanted - 1e-9)
    return [math.floor(k * rate / wanted + 0.5 + 1e-9) for k in range(count)]


def _clip_key(held: Any, rate: float | None) -> str | None:
    """What tells a video of levels from others; None of one that may have a gradient."""
    if not isinstance(held, Tensor) or held.dtype != torch.uint8:
        return None
    return f"{hashlib.sha256(held.cpu().numpy().tobytes()).hexdigest()} {tuple(held.shape)} {rate} {held.device}"


def word_counts(prompts: Sequence[str], size: int) -> Tensor:
    """(B,size) of length 1 each (0 of an empty text): lower-case words and neighbouring pairs of words, each counted at
    the place that its CRC-32 gives it (feature hashing, Weinberger et al., arXiv 0902.2206, without the sign)."""
    counts = torch.zeros(len(prompts), size)
    for row, prompt in zip(counts, prompts, strict=True):
        words = WORD.findall(prompt.lower())
        for term in [*words, *map(" ".join, pairwise(words))]:
            row[zlib.crc32(term.encode()) % size] += 1
    return F.normalize(counts, dim=1)
