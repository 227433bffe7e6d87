"""The learned head reads what its backbone gives."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from genalign.reward import HeadReward
from genalign.types import UsageError
from tests.helpers.toy_rewards import prompts, texts, tiny_text_head


def test_head_reads_what_the_backbone_says(tmp_path: Path) -> None:
    folder = tiny_text_head(tmp_path / "head", ("fluency", "tone"), readout="sigmoid", template="{prompt} {text}")
    head = HeadReward(folder)
    assert head.needs == {"text", "prompt"}
    assert head.aspects == ("fluency", "tone")
    asked, said = prompts(3), ["a cat", "two cats and the star", ""]
    scores = head(asked, texts(*said))
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    for row in range(3):
        ids = tokenizer(f"{asked[row].text} {said[row]}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            pooled = net(ids).last_hidden_state[0].mean(0)
        expected = torch.sigmoid(head.weight @ pooled + head.bias)
        assert torch.allclose(scores.values[row], expected, atol=1e-5)
    assert torch.allclose(scores.total, scores.values.sum(1))


def test_heads_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    folder = tiny_text_head(tmp_path / "head")
    (folder / "head.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(UsageError, match="holds no reward head"):
        HeadReward(folder)
    (folder / "head.safetensors").unlink()
    with pytest.raises(UsageError, match="holds no reward head"):
        HeadReward(folder)
