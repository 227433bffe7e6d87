"""Text reward models that are sequence classifiers with one label: Skywork-Reward-V2 and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genalign.reward.base import Stateless, cut_info, digest, weights_digest
from genalign.reward.heads.text_features import context, too_long
from genalign.reward.heads.weights import find_weights, from_hub
from genalign.reward.scores import all_valid
from genalign.types import Media, Prompt, Scores, UsageError


class Classifier(Stateless):
    """score = the one logit of AutoModelForSequenceClassification on a chat of prompt and answer; any number.

    Skywork-Reward-V2 (arXiv 2507.01352): the tokenizer's chat template with a user turn and an assistant turn, no
    system turn, the beginning-of-text token once. Which token is read is the checkpoint's own matter (its config's
    pad_token_id decides), so rows of unequal length never share a batch, and nothing is padded. device: "cuda" where
    there is one (None). Texts longer than the model's context are cut at their end. Without gradients.

    Raises:
        UsageError: no such model, pickled weights, several labels, or no chat template.
    """

    needs = frozenset({"prompt", "text"})
    looks_at = "sample"
    differentiable = False

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        device: str | None = None,
        batch_size: int = 8,
        name: str = "classifier",
    ) -> None:
        if dtype not in ("float32", "bfloat16"):
            raise UsageError(f"reward {name!r} has no dtype {dtype!r}; float32 or bfloat16")
        self.model, self.dtype, self.batch_size = find_weights(model, Path()), dtype, batch_size
        self.device, self.name, self.aspects = device, name, (name,)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = from_hub(AutoTokenizer, self.model)
        net = from_hub(AutoModelForSequenceClassification, self.model, dtype=getattr(torch, self.dtype))
        if net.config.num_labels != 1:
            raise UsageError(f"{self.model} has {net.config.num_labels} labels; reward {self.name!r} reads one")
        if not tokenizer.chat_template:
            raise UsageError(f"the tokenizer of {self.model} has no chat template; it is not a reward model of chats")
        return net.to(self.device or ("cuda" if torch.cuda.is_available() else "cpu")), tokenizer

    @property
    def version(self) -> str:
        net, tokenizer = self._loaded
        longest = context(net, tokenizer)
        stricter = [longest] if longest < tokenizer.model_max_length else []  # scores of longer texts depend on it
        return digest("classifier", self.name, weights_digest(net), tokenizer.chat_template, *stricter)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        net, tokenizer = self._loaded
        answers = [str(text) for text in media["text"].data]
        written = [self._chat(tokenizer, prompt.text, text) for prompt, text in zip(prompts, answers, strict=True)]
        longest, end = context(net, tokenizer), tokenizer.eos_token_id or 0
        # A tokenizer that adds no token of its own makes nothing of an empty text: one end-of-text stands for it.
        ids = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] or [end] for text in written]
        together = self.batch_size if net.config.pad_token_id is not None else 1  # else the model refuses a batch
        values = torch.zeros(len(ids), 1)
        for length in sorted({len(row) for row in ids}):  # rows of one length at a time: nothing is padded
            rows = [at for at, row in enumerate(ids) if len(row) == length]
            for start in range(0, len(rows), together):
                part = rows[start : start + together]
                tokens = torch.tensor([ids[row] for row in part], device=net.device)
                values[part] = net(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.float().cpu()
        return all_valid(self.aspects, values, info=cut_info(self.name, too_long(tokenizer, written, longest)))

    @staticmethod
    def _chat(tokenizer: Any, prompt: str, answer: str) -> str:
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        written = tokenizer.apply_chat_template(chat, tokenize=False)
        begin = tokenizer.bos_token_id
        adds = begin is not None and tokenizer("")["input_ids"][:1] == [begin]  # then the template's would be a second
        return written.removeprefix(tokenizer.bos_token) if adds else written
