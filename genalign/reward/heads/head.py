"""A learned head on a language backbone: text in, one score an aspect out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genalign.files.header import sort_header
from genalign.files.untrusted import check_model
from genalign.reward.base import Stateless, cut_info, digest, resolve_model, weights_digest
from genalign.reward.heads.text_features import context, hidden_states, pooled, too_long
from genalign.reward.scores import all_valid
from genalign.reward.template import check_template, fill_text, places
from genalign.types import Media, Prompt, Scores, UsageError

Pool = Literal["mean", "last"]
Readout = Literal["linear", "sigmoid"]
FILE = "head.safetensors"


def save_head(
    folder: Path,
    weight: Tensor,
    bias: Tensor,
    aspects: Sequence[str],
    pool: Pool = "mean",
    readout: Readout = "linear",
    template: str = "{text}",
) -> None:
    """Write head.safetensors beside a backbone: weight (K,H), bias (K,), and how the head is to be used."""
    settings = {"aspects": json.dumps(list(aspects)), "pool": pool, "readout": readout, "template": template}
    save_file({"weight": weight.contiguous(), "bias": bias.contiguous()}, folder / FILE, metadata=settings)
    sort_header(folder / FILE)


class HeadReward(Stateless):
    """scores = readout(W pool(backbone(text)) + b), K aspects in fp32.

    model: a folder that transformers' AutoModel and AutoTokenizer load, with a head.safetensors that `save_head` wrote
    (relative, or a shipped asset). The file holds how it pools (the mean over tokens, or the last token), what it reads
    (a template of {prompt} and {text}) and its readout (linear: any number; sigmoid: [0,1]). Texts longer than the
    backbone's context are cut. batch_size: texts a forward pass.

    Raises:
        UsageError: no such model, no head in it, or one whose settings do not fit.
    """

    looks_at = "sample"
    differentiable = False

    def __init__(self, model: str | Path, *, batch_size: int = 64, name: str = "head") -> None:
        self.model = Path(resolve_model(model))
        self.batch_size, self.name = batch_size, name
        try:
            with safe_open(self.model / FILE, "pt") as file:
                self._settings = file.metadata() or {}
                self.weight, self.bias = file.get_tensor("weight").float(), file.get_tensor("bias").float()
            aspects = json.loads(self._settings["aspects"])
            self.pool: Any = self._settings["pool"]
            self.readout = self._settings["readout"]
            self.template = self._settings["template"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UsageError(f"{self.model / FILE} holds no reward head ({error}); write one with save_head") from error
        check_template(self.template, ("prompt", "text"), str(self.model / FILE), some=True)
        sound = self.pool in get_args(Pool) and self.readout in get_args(Readout)
        if not sound or len(aspects) != len(self.weight) or len(aspects) != len(self.bias):
            raise UsageError(
                f"the settings of {self.model / FILE} do not fit its tensors; write it again with save_head"
            )
        self.aspects = (name,) if len(aspects) == 1 else tuple(aspects)
        self.needs = frozenset({"text"} | ({"prompt"} if "prompt" in places(self.template) else set()))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        check_model(self.model)
        plain: Any = {"trust_remote_code": False}
        try:
            net = AutoModel.from_pretrained(self.model, use_safetensors=True, dtype=torch.float32, **plain)
            tokenizer = AutoTokenizer.from_pretrained(self.model, **plain)
        except (OSError, ValueError, SafetensorError) as error:
            raise UsageError(f"reward model {self.model} cannot be loaded: {' '.join(str(error).split())}") from error
        return net.eval().requires_grad_(False), tokenizer

    @property
    def version(self) -> str:
        head = [self.weight.tolist(), self.bias.tolist(), self._settings]
        return digest("head", self.name, weights_digest(self._loaded[0]), head)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        both = zip(prompts, media["text"].data, strict=True)
        written = [fill_text(self.template, prompt=prompt.text, text=text) for prompt, text in both]
        net, tokenizer = self._loaded
        parts = []
        for at in range(0, len(written), self.batch_size):
            hidden, mask, _ = hidden_states(net, tokenizer, written[at : at + self.batch_size])
            parts.append(pooled(hidden, mask, self.pool))
        rows = torch.cat(parts)  # (B,H)
        values = rows @ self.weight.T + self.bias  # (B,K)
        values = values.sigmoid() if self.readout == "sigmoid" else values
        return all_valid(
            self.aspects, values, info=cut_info(self.name, too_long(tokenizer, written, context(net, tokenizer)))
        )
