"""One beginning-of-text token, whoever writes it: the chat template, the tokenizer, or both (transformers#36064)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from genalign.reward import build_reward
from genalign.reward.fit.backbones import BackboneSettings, build_backbone
from genalign.reward.judge.asking import Question
from genalign.reward.judge.local import LocalModel
from genalign.types import Media, Prompt
from tests.helpers.tiny_heads import tiny_classifier
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.toy_judges import tiny_vlm
from tests.helpers.toy_rewards import images, texts

PROMPTS = [Prompt("a cat"), Prompt("two dog star")]


def beginning(folder: Path, adds: bool, template: str | None) -> Path:
    """The folder, its tokenizer putting <bos> before every text or not, its chat template another."""
    from tokenizers import processors

    tokenizer = AutoTokenizer.from_pretrained(folder)
    begin, post = tokenizer.bos_token, processors.TemplateProcessing
    tokenizer.backend_tokenizer.post_processor = post(
        single=f"{begin} $A" if adds else "$A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def reading(net: Any) -> Iterator[list[torch.Tensor]]:
    """The token ids of every call of a network within the block."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, given: Any, named: dict[str, Any]) -> None:
        seen.append(named["input_ids"] if "input_ids" in named else given[0])

    hook = net.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def beginnings(seen: list[torch.Tensor], begin: int = 1) -> list[int]:
    assert seen
    return [count for ids in seen for count in (ids == begin).sum(1).tolist()]


CHAT = "{{ bos_token }} {% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


@pytest.mark.parametrize("adds", [True, False])
def test_a_language_judge(tmp_path: Path, adds: bool) -> None:
    folder = beginning(save_tiny_language(tmp_path / "model"), adds, CHAT)
    judge = LocalModel(folder)
    with reading(judge._loaded[0]) as seen:
        judge.yes([Question(("is it a cat",)), Question(("no",))])
    assert set(beginnings(seen)) == {1}


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("user", ["judge", "backbone"])
def test_a_model_of_pictures(tmp_path: Path, adds: bool, user: str) -> None:
    folder = beginning(tiny_vlm(tmp_path / "vlm"), adds, None)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = "<bos> " + processor.chat_template
    processor.save_pretrained(folder)
    if user == "judge":
        judge, picture = LocalModel(folder), images(1)["image"].data[0]
        assert isinstance(picture, torch.Tensor)
        with reading(judge._loaded[0]) as seen:
            judge.yes([Question((picture, "is it a cat")), Question((picture, "no"))])
    else:
        backbone: Any = build_backbone(BackboneSettings(kind="vlm", model=str(folder)), "image", tmp_path)
        with reading(backbone.loaded[0]) as seen:
            backbone.features(PROMPTS, images(2))
    assert set(beginnings(seen)) == {1}


@pytest.mark.parametrize("adds", [True, False])
def test_a_text_backbone(tmp_path: Path, adds: bool) -> None:
    folder = beginning(save_tiny_language(tmp_path / "model"), adds, CHAT)
    backbone: Any = build_backbone(BackboneSettings(kind="text", model=str(folder)), "text", tmp_path)
    with reading(backbone.loaded[0]) as seen:
        backbone.features(PROMPTS, texts("a cat", "the red dog"))
    assert set(beginnings(seen)) == {int(adds)}  # it reads plain text: what the tokenizer writes


@pytest.mark.parametrize("adds", [True, False])
def test_a_classifier(tmp_path: Path, adds: bool) -> None:
    folder = beginning(tiny_classifier(tmp_path / "rm"), adds, None)
    spec = {"use": "skywork", "model": str(folder), "dtype": "float32", "device": "cpu"}
    reward: Any = build_reward(spec, Path())
    with reading(reward._loaded[0]) as seen:
        reward(PROMPTS, Media(text=texts("good", "bad")["text"]))
    assert set(beginnings(seen)) == {1}
