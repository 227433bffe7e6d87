"""Skywork's text classifier on a tiny model, against its card."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from genalign.reward import build_reward
from genalign.types import Prompt
from tests.helpers.tiny_heads import tiny_classifier
from tests.helpers.toy_rewards import texts


@pytest.mark.parametrize("pad", [0, None, 2])
def test_skywork_is_the_logit_of_its_card(tmp_path: Path, pad: int | None) -> None:
    """The card: chat template, leading <s> dropped, tokenised one by one, logits[0][0]. 2 also ends a text."""
    folder = tiny_classifier(tmp_path / "rm", pad)
    net = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [Prompt("a cat"), Prompt("two cats and the star"), Prompt("a cat"), Prompt("number 3")]
    said = ["good", "bad : the prompt 4", "bad", ""]
    expected = []
    for prompt, answer in zip(asked, said, strict=True):
        turns = [{"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer}]
        chat = tokenizer.apply_chat_template(turns, tokenize=False)
        assert chat.startswith(tokenizer.bos_token)
        ids = tokenizer(chat[len(tokenizer.bos_token) :], return_tensors="pt")
        assert (ids.input_ids == tokenizer.bos_token_id).sum() == 1
        with torch.no_grad():
            expected.append(net(**ids).logits[0][0].item())
    spec = {"use": "skywork", "model": str(folder), "dtype": "float32", "device": "cpu"}
    for batch_size in (1, 4):
        scores = build_reward({**spec, "batch_size": batch_size}, Path())(asked, texts(*said))
        assert scores.total.tolist() == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 1e-3
    assert scores.names == ("skywork",)
