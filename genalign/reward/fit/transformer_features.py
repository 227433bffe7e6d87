"""Backbones that are networks of transformers: pooled hidden states of a text, or of a picture and a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from genalign.data.judged import Kind
from genalign.files.untrusted import check_model
from genalign.reward.base import digest, tensor_rows, weights_digest
from genalign.reward.fit.backbone_settings import BackboneSettings
from genalign.reward.heads.text_features import context, hidden_states, pooled, too_long
from genalign.reward.template import check_template, fill_text, places
from genalign.types import Media, Prompt, UsageError

PLAIN: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32, "trust_remote_code": False}


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


def _parts(rows: Any, size: int) -> Iterator[Any]:
    return (rows[at : at + size] for at in range(0, len(rows), size))
