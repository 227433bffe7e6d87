"""The real context of text models, whatever their tokenizer states: a longer text is cut, and that is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from genalign.reward import HeadReward, build_reward, save_head
from genalign.reward.heads.text_features import context
from genalign.types import Media, Prompt, Track
from tests.helpers.tiny_heads import TEXT_CHAT, randomise, tiny_clap, word_tokenizer
from tests.helpers.toy_rewards import prompts, texts

BERT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
OPT = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 16}
SPECIAL = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1}
FAMILIES: dict[str, tuple[Any, int]] = {  # of 64 positions: the most tokens that a forward pass takes
    "gpt2": (GPT2Config(n_positions=64, n_embd=16, n_layer=1, n_head=2, **SPECIAL), 64),
    "bert": (BertConfig(max_position_embeddings=64, **BERT, **SPECIAL), 64),
    "roberta": (RobertaConfig(max_position_embeddings=64, **BERT, **SPECIAL), 63),
    "xlm-roberta": (XLMRobertaConfig(max_position_embeddings=64, **BERT, **SPECIAL | {"pad_token_id": 1}), 62),
    "opt": (OPTConfig(max_position_embeddings=64, **OPT, **SPECIAL), 64),
    "bart": (BartConfig(max_position_embeddings=64, **BART, **SPECIAL), 64),
    "llama": (LlamaConfig(max_position_embeddings=64, **BERT, **SPECIAL), 64),
}


def classifier(folder: Path, config: Any, stated: int = 10**30) -> Path:
    net = AutoModelForSequenceClassification.from_config(config)
    randomise(net).save_pretrained(folder)
    tokenizer = word_tokenizer(chat=TEXT_CHAT)
    tokenizer.model_max_length = stated
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_context_is_what_a_forward_pass_takes(family: str) -> None:
    config, most = FAMILIES[family]
    net = AutoModelForSequenceClassification.from_config(config).eval()
    assert context(net) == most
    net(input_ids=torch.tensor([[*[5] * (most - 1), 2]]))
    if family != "llama":  # whose positions are not in a table
        with pytest.raises((IndexError, RuntimeError)):
            net(input_ids=torch.tensor([[*[5] * most, 2]]))


@pytest.mark.parametrize("family", ["gpt2", "roberta", "opt", "llama"])
def test_a_classifier_cuts_at_its_context_and_says_so(tmp_path: Path, family: str) -> None:
    config, most = FAMILIES[family]
    folder = classifier(tmp_path / "rm", config)
    reward = build_reward({"use": "skywork", "model": str(folder), "dtype": "float32", "device": "cpu"}, Path())
    asked, answers = [Prompt("a cat")] * 3, ["good", "star " * 200 + "good", "star " * 200 + "bad"]
    scores = reward(asked, texts(*answers))
    assert scores.info["truncated/skywork"] == [False, True, True]
    net = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = word_tokenizer()
    whole = tokenizer(f"a : a cat </s>the : {answers[1]} </s>")["input_ids"]
    assert len(whole) > 200
    with torch.no_grad():
        expected = net(input_ids=torch.tensor([[*whole[: most - 1], 2]])).logits[0, 0]  # its </s> stays the last
    assert scores.total[1].item() == pytest.approx(expected.item(), abs=1e-4)
    assert scores.total[1] == scores.total[2]  # what differs was cut


def test_a_version_shares_no_scores_with_another_limit(tmp_path: Path) -> None:
    spec = {"use": "skywork", "dtype": "float32", "device": "cpu"}
    config, _ = FAMILIES["llama"]
    versions = []
    for name, stated in (("stated", 64), ("unstated", 10**30)):
        versions.append(
            build_reward({**spec, "model": str(classifier(tmp_path / name, config, stated))}, Path()).version
        )
    assert versions[0] != versions[1]


def test_clap_cuts_at_the_positions_of_its_roberta(tmp_path: Path) -> None:
    """40 rows of positions and padding 0 take 39 tokens; the tokenizer states 512."""
    reward = build_reward({"use": "clap", "model": str(tiny_clap(tmp_path / "clap"))}, Path())
    asked = [Prompt("a cat"), Prompt("star " * 100 + "cat"), Prompt("star " * 100 + "two"), Prompt("")]
    waves = torch.rand(1, 1, 8000, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1)
    scores = reward(asked, Media(audio=Track(waves, rate=8000)))
    assert scores.info["truncated/clap"] == [False, True, True, False]
    assert scores.total[1] == pytest.approx(scores.total[2].item(), abs=1e-6)
    just = reward([Prompt("star " * 37)], Media(audio=Track(waves[:1], rate=8000)))
    assert just.info["truncated/clap"] == [False]
    assert just.total.item() == pytest.approx(scores.total[1].item(), abs=1e-6)


def test_a_learned_head_on_roberta_cuts_at_its_positions(tmp_path: Path) -> None:
    config, _ = FAMILIES["roberta"]
    from transformers import AutoModel

    folder = tmp_path / "head"
    randomise(AutoModel.from_config(config)).save_pretrained(folder)
    tokenizer = word_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(folder)
    save_head(folder, torch.ones(1, 16), torch.zeros(1), ["good"])
    scores = HeadReward(folder)(prompts(3), texts("a cat", "star " * 100, ""))
    assert scores.info["truncated/head"] == [False, True, False]
    assert bool(scores.total.isfinite().all())
