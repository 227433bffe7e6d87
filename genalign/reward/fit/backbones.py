"""Frozen backbones of fitted rewards: prompts and media in, one row of features a sample out."""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.data.judged import Kind
from genalign.files.untrusted import check_model
from genalign.reward.base import digest, resolve_model, tensor_rows, texts, weights_digest
from genalign.reward.fit.moving import clip_features, read_frames
from genalign.reward.heads.clip import REMEMBERED, ClipReward
from genalign.reward.heads.text_features import context, hidden_states, pooled, too_long
from genalign.reward.template import check_template, fill_text, places
from genalign.types import Media, Prompt, Track, UsageError

FRAMES = 2.0  # a second, that are taken of a video
WORD = re.compile(r"\w+")
PLAIN: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32, "trust_remote_code": False}


class BackboneSettings(BaseModel):
    """What turns a sample into features. It stays as it is; only the head on it learns."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: Literal["clip", "text", "vlm"]
    """clip: an open_clip model, for images, and for videos as the mean of two frames a second; text: a language model
    or encoder of transformers; vlm: an image-text model of transformers."""
    model: str
    """A folder (relative to the recipe), a shipped asset or a hub id."""
    prompt: bool = True
    """Of clip: whether the features are of how the picture suits its prompt, or of the picture alone."""
    motion: bool = False
    """Of clip, for videos: besides what the frames show, how they change from one to the next (moving.py)."""
    words: int = Field(default=0, ge=0)
    """Of clip, for the head match: besides the prompt's embedding its words and neighbouring pairs of words, as a
    hashed count of this length, since CLIP's embeddings say little of verbs and order; 0: none."""
    template: str | None = None
    """Of text and vlm: what is read, with {prompt} and {text}, other braces as they are; null: all that there is."""
    pool: Literal["mean", "last", "token"] = "mean"
    """Of text and vlm, over the last hidden states: their mean, the last one, or the one at `token`."""
    token: str | None = None
    """Of pool token: a token that the tokenizer knows; it is put at the end where the text has none."""
    batch_size: int = Field(default=32, ge=1)
    """Samples a forward pass."""


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


class _Transformer:
    """What text and vlm share: a template, a net of transformers, and pooling over the last hidden states."""

    differentiable = False
    of_prompt = 0

    def faults(self, media: Media, rows: int) -> list[str | None]:
        return [None] * rows

    def __init__(self, model: str, settings: BackboneSettings, template: str) -> None:
        self.model, self.settings = model, settings
        self.template = settings.template or template
        check_template(self.template, ("prompt", "text"), f"backbone {model}", some=True)

    @cached_property
    def loaded(self) -> tuple[nn.Module, Any]:
        """The net, and its tokenizer or processor."""
        check_model(self.model)
        try:
            net, reader = self._load()
        except (OSError, ValueError) as error:
            raise UsageError(f"backbone {self.model} cannot be loaded: {' '.join(str(error).split())}") from error
        tokenizer = getattr(reader, "tokenizer", reader)
        token = self.settings.token
        if token is not None and token not in tokenizer.get_vocab():
            raise UsageError(f"the tokenizer of {self.model} does not know the token {token!r}; name one that it knows")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return net.to(device).eval().requires_grad_(False), reader

    def _load(self) -> tuple[nn.Module, Any]:
        raise NotImplementedError

    @property
    def version(self) -> str:
        settings = self.settings.model_dump(exclude={"model", "batch_size"})
        return digest("hidden", weights_digest(self.loaded[0]), settings, self.template)

    def written(self, prompts: Sequence[Prompt], media: Media) -> list[str]:
        """The template, filled for each row; the token that is pooled stands at its end where it is not in it."""
        answers = [str(text) for text in media["text"].data] if "text" in media else [""] * len(prompts)
        both = zip(prompts, answers, strict=True)
        written = [fill_text(self.template, prompt=prompt.text, text=text) for prompt, text in both]
        token = self.settings.token
        return [text if token is None or token in text else text + token for text in written]

    def pooled(self, hidden: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """(R,H) of hidden (R,T,H); mask, ids (R,T). Padding may stand on either side."""
        if self.settings.pool != "token":
            return pooled(hidden, mask, self.settings.pool)
        reader = self.loaded[1]
        tokenizer = getattr(reader, "tokenizer", reader)
        there = mask.bool() & (ids == tokenizer.convert_tokens_to_ids(self.settings.token))
        if not there.any(1).all():
            raise UsageError(f"a text is too long to reach its token {self.settings.token!r}; shorten the template")
        return pooled(hidden, there, "last")


class TextFeatures(_Transformer):
    """Pooled hidden states of a language model or text encoder. Texts longer than its context are cut."""

    def __init__(self, model: str, settings: BackboneSettings) -> None:
        super().__init__(model, settings, "{prompt}\n{text}")
        self.needs = frozenset({"text", *(["prompt"] if "prompt" in places(self.template) else [])})

    def _load(self) -> tuple[nn.Module, Any]:
        from transformers import AutoModel, AutoTokenizer

        net = AutoModel.from_pretrained(self.model, **PLAIN)
        return net, AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)

    @torch.no_grad()
    def features(self, prompts: Sequence[Prompt], media: Media) -> Tensor:
        parts = _parts(self.written(prompts, media), self.settings.batch_size)
        return torch.cat([self.pooled(*hidden_states(*self.loaded, part)).cpu() for part in parts])

    def cut(self, prompts: Sequence[Prompt], media: Media) -> list[bool]:
        net, tokenizer = self.loaded
        return too_long(tokenizer, self.written(prompts, media), context(net, tokenizer))


class VlmFeatures(_Transformer):
    """Pooled hidden states of an image-text model that reads a picture and a text.

    Where samples are images, the picture is the sample; where they are texts, it is the one that the prompt is about.
    """

    def __init__(self, model: str, settings: BackboneSettings, reads: Kind) -> None:
        super().__init__(model, settings, "{prompt}" if reads == "image" else "{prompt}\n{text}")
        self.reads = reads
        self.needs = frozenset({reads, *(["prompt"] if reads == "text" or "prompt" in places(self.template) else [])})

    def _load(self) -> tuple[nn.Module, Any]:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        net = AutoModelForImageTextToText.from_pretrained(self.model, **PLAIN)
        return net, AutoProcessor.from_pretrained(self.model, trust_remote_code=False)

    @torch.no_grad()
    def features(self, prompts: Sequence[Prompt], media: Media) -> Tensor:
        net, processor = self.loaded
        shown, written, rows = self._shown(prompts, media), self.written(prompts, media), []
        for part in _parts(range(len(written)), self.settings.batch_size):
            given = processor(
                images=[shown[i] for i in part],
                text=[self._chat(processor, written[i]) for i in part],
                return_tensors="pt",
                padding=True,
                add_special_tokens=not getattr(processor, "chat_template", None),  # a template writes its own
            ).to(next(net.parameters()).device)
            hidden = net(**given, output_hidden_states=True).hidden_states[-1].float()
            rows.append(self.pooled(hidden, given["attention_mask"], given["input_ids"]).cpu())
        return torch.cat(rows)

    def cut(self, prompts: Sequence[Prompt], media: Media) -> list[bool]:
        return [False] * len(prompts)  # its processor cuts nothing

    def _shown(self, prompts: Sequence[Prompt], media: Media) -> list[Any]:
        from genalign.media.image import to_pil

        if self.reads == "image":
            return [to_pil(image) for image in tensor_rows(media["image"])]
        pictures = []
        for prompt in prompts:
            track = None if prompt.media is None else prompt.media.get("image")
            if track is None or not isinstance(track.held[0], Tensor):
                raise UsageError(
                    f"backbone {self.model} reads pictures, but a prompt has none; set backbone.kind: text"
                )
            pictures.append(to_pil(track.held[0]))
        return pictures

    @staticmethod
    def _chat(processor: Any, text: str) -> str:
        if getattr(processor, "chat_template", None):
            chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
            return processor.apply_chat_template(chat)
        return f"{processor.image_token}\n{text}"


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


def _parts(rows: Any, size: int) -> Iterator[Any]:
    return (rows[at : at + size] for at in range(0, len(rows), size))
