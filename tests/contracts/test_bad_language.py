"""Bad input of language and vision-language models: one sentence each, or the right thing without one.

What else the issue lists is tested where it is refused: prompts longer than the context and folders that do not load
(policy/language/test_policy.py), counts of pictures, placeholders and processors (test_processor.py), logits that are
no numbers (test_sampling.py), tokenizers without a padding token (test_policy.py), templates (test_chat.py).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.utils import logging

from genalign.data.prompts import read_prompts
from genalign.files.shipped import shipped
from genalign.method import MethodSettings, build_method
from genalign.policy import load_policy
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import GenalignError, Prompt, UsageError
from tests.helpers.language_policies import PICTURES, policy
from tests.helpers.tiny_language import save_tiny_language, tiny_language


def tiny(prepare: Any = None, **keys: Any) -> LanguagePolicy:
    model, words = tiny_language()
    if prepare is not None:
        prepare(model, words)
    chosen = {"model": "tiny", "lora": Lora(rank=4), "batch_size": 4, "max_new_tokens": 6, **keys}
    return LanguagePolicy(model, words, PolicySettings(**chosen))


def row(folder: Path, **values: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "how many star", **values}) + "\n")
    return path


def test_a_picture_that_is_missing_or_cut_short_is_named(tmp_path: Path) -> None:
    with pytest.raises((UsageError, GenalignError), match=r"gone\.png"):
        read_prompts(row(tmp_path, image="gone.png"))
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((UsageError, GenalignError), match=r"cut\.png.* cannot be read as a picture"):
        read_prompts(row(tmp_path, image="cut.png"))


def test_an_answer_without_a_token_is_refused_and_an_empty_one_is_its_end() -> None:
    """What elsewhere is a mask of assistant tokens that is all zeros, and a loss of 0 / 0."""
    assert tiny().read([Prompt("hello")], [""]).mask.tolist() == [[True]]

    def endless(model: Any, words: Any) -> None:
        words.eos_token = None
        model.generation_config.eos_token_id = None

    with pytest.raises(UsageError, match="an answer to 'hello' has no tokens in this model's vocabulary; drop it"):
        tiny(endless).read([Prompt("hello")], [""])


def test_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    mine, other = tiny(), policy("gemma2")
    before = {name: p.clone() for name, p in mine.named_trainable().items()}
    other.save_adapter(tmp_path / "adapter")
    with pytest.raises(UsageError, match=r"belongs to another model or policy\.lora; use the recipe it was trained by"):
        mine.load_adapter(tmp_path / "adapter")
    guided = build_method(MethodSettings(name="rto", guide="adapter", group=2), tmp_path)
    trajectory = mine.rollout([Prompt("hello")], 2, 0)
    with pytest.raises(UsageError, match=r"belongs to another model or policy\.lora"):
        guided.guide.score(mine, trajectory, range(2), range(trajectory.logp.shape[1]))
    assert all(torch.equal(p, before[name]) for name, p in mine.named_trainable().items())
    with pytest.raises(UsageError, match="there is no adapter at"):
        mine.load_adapter(tmp_path / "nowhere")


def test_an_adapter_of_another_family_is_not_merged(tmp_path: Path) -> None:
    folder = save_tiny_language(tmp_path / "model")
    policy("gemma2").save_adapter(tmp_path / "adapter")
    settings = PolicySettings(model="tiny", merged=str(tmp_path / "adapter"))
    with pytest.raises(UsageError, match=r"belongs to another model \((size mismatch for )?base_model") as error:
        load_policy(settings, folder)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    """transformers makes a tokenizer of nothing, in which every prompt is empty."""
    shutil.copytree(shipped("assets", "tiny-lm"), tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    with pytest.raises(UsageError, match=r"has no vocabulary of a tokenizer; put tokenizer\.json"):
        load_policy(PolicySettings(model="tiny"), tmp_path / "model")


@pytest.mark.parametrize("layer", ["first", "last"])
def test_weights_that_are_no_numbers_are_told_apart_from_a_model_that_samples_otherwise(layer: str) -> None:
    def spoilt(model: Any, words: Any) -> None:
        with torch.no_grad():
            model.model.layers[0 if layer == "first" else -1].input_layernorm.weight[0] = torch.nan

    with pytest.raises(GenalignError, match="logits are NaN or infinite, so nothing can be sampled"):
        tiny(spoilt).rollout([Prompt("hello")], 1, 0)


def test_a_prompt_that_is_too_long_is_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    def short(model: Any, words: Any) -> None:
        words.model_max_length = 8

    logging.enable_propagation()
    try:
        with pytest.raises(UsageError, match="which leaves no room for 6 more"):
            tiny(short).check_prompt(Prompt("star " * 90))
    finally:
        logging.disable_propagation()
    assert not caplog.records


def test_a_placeholder_stays_in_the_row_of_its_picture() -> None:
    """Two pictures in the one row and none in the other are refused, though their number in the batch is right."""
    of = policy("llava")
    moved = [Prompt("<image> <image> a", PICTURES[0].media, uid=0), Prompt("a", PICTURES[0].media, uid=1)]
    with pytest.raises(UsageError, match="brings 1 of image, but is written with '<image>' 2 times"):
        of.rollout(moved, 1, 0)


@pytest.mark.parametrize("missing", ["padding", "template", "both"])
def test_without_a_padding_token_or_a_chat_template_a_batch_is_what_its_rows_are(missing: str) -> None:
    def without(model: Any, words: Any) -> None:
        if missing != "template":
            words.pad_token = None
        if missing == "padding":
            words.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"

    of, asked = tiny(without), [Prompt("hello", uid=0), Prompt("is the red car", uid=1)]
    together = of.rollout(asked, 2, 3)
    for k, prompt in enumerate(asked):
        alone = of.rollout([prompt], 2, 3)
        assert alone.tape.completion == together.tape.completion[2 * k : 2 * k + 2]
