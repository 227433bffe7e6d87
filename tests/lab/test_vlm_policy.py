"""tiny-vlm: its loss is that of each question alone, its words are the judge's, and its card is what it answers."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import torch

from genalign.files.shipped import shipped
from genalign.lab import vlm_policy
from genalign.lab.questions import KINDS, careless
from genalign.lab.questions_files import examples
from genalign.lab.vlm_figures import STAGES, answers_right, measure
from genalign.types import Prompt

tokenizer = functools.cache(vlm_policy.policy_tokenizer)


@functools.cache
def begun() -> Any:
    return vlm_policy.policy_model(tokenizer(), shipped("assets", "tiny-vlm-judge"))


def asked_about(pictures: int, each: int, seed: int = 5) -> tuple[torch.Tensor, list[list[tuple[str, str]]]]:
    rng = np.random.default_rng(seed)
    shown, asked = examples(rng, pictures, each)
    pixels = vlm_policy.normalised(torch.from_numpy(shown).permute(0, 3, 1, 2))
    return pixels, [[(one.text, careless(one, rng)) for one in of_one] for of_one in asked]


def test_questions_behind_one_picture_are_learnt_as_each_alone() -> None:
    """Against transformers: the processor's own inputs, the model's own loss."""
    pixels, pairs = asked_about(3, 3)
    model = begun().eval()
    processor = vlm_policy.policy_processor(tokenizer())
    with torch.no_grad():
        together = float(vlm_policy.answer_loss(model, tokenizer(), pixels, pairs))
        total, count = 0.0, 0
        for picture, of_one in zip(pixels, pairs, strict=True):
            for question, answer in of_one:
                turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
                said = {"role": "assistant", "content": answer}
                blank = [[np.zeros((64, 64, 3), dtype=np.uint8)]]
                texts = [processor.apply_chat_template(turns) for turns in ([turn], [turn, said])]
                begin, whole = (
                    processor(text=[text], images=blank, add_special_tokens=False, return_tensors="pt").input_ids
                    for text in texts
                )
                labels = whole.clone()
                labels[:, : begin.shape[1]] = -100
                own = whole.shape[1] - begin.shape[1]
                loss = model(input_ids=whole, pixel_values=picture[None], labels=labels).loss
                total, count = total + own * float(loss), count + own
    assert together == pytest.approx(total / count, rel=1e-5)


def test_what_the_judge_knows_is_taken_over() -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    folder = shipped("assets", "tiny-vlm-judge")
    judge = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    theirs, known = judge.state_dict(), AutoTokenizer.from_pretrained(folder).get_vocab()
    own = begun().state_dict()
    for name in ("model.vision_tower.pre_layrnorm.weight", "model.language_model.layers.3.mlp.up_proj.weight"):
        assert torch.equal(own[name], theirs[name])
    words = "model.language_model.embed_tokens.weight"
    vocabulary = tokenizer().get_vocab()
    for word in ("roses</w>", "left</w>", "<|endoftext|>"):
        assert torch.equal(own[words][vocabulary[word]], theirs[words][known[word]])
    assert torch.equal(own[words][vocabulary["yes</w>"]], theirs[words][known["yes"]])


def test_every_word_number_and_tag_is_one_token_and_comes_back() -> None:
    text = "<think>two roses left of a cat</think><answer>[6, 11, 25, 64]</answer>"
    ids = tokenizer()(text, add_special_tokens=False).input_ids
    assert len(ids) == 4 + 6 + 9
    assert "".join(tokenizer().decode(ids).split()) == "".join(text.split())
    for of_one in asked_about(7, 7)[1]:
        for _, answer in of_one:
            back = tokenizer().decode(tokenizer()(answer, add_special_tokens=False).input_ids)
            assert "".join(back.split()) == "".join(answer.split())


def test_words_come_back_apart_from_the_processor_that_is_shipped() -> None:
    from transformers import AutoProcessor

    shipped_one = AutoProcessor.from_pretrained(shipped("assets", "tiny-vlm")).tokenizer
    text = "<think>two red apples left of été</think><answer>left of</answer>"
    for one in (shipped_one, tokenizer()):
        back = one.decode(one(text, add_special_tokens=False).input_ids)
        assert back.replace(" </", "</").strip() == text
    assert shipped_one.get_vocab() == tokenizer().get_vocab()


def test_an_answer_is_right_where_its_rule_says_so() -> None:
    asked = [
        Prompt("how many?", facts={"answer": "two", "boxes": None}),
        Prompt("how many?", facts={"answer": "two", "boxes": None}),
        Prompt("where?", facts={"answer": None, "boxes": [[0, 0, 10, 10], [20, 20, 30, 30]]}),
        Prompt("where?", facts={"answer": None, "boxes": [[0, 0, 10, 10], [20, 20, 30, 30]]}),
    ]
    written = ["<answer>2</answer>", "two", "<answer>[0, 0, 9, 10], [21, 20, 30, 30]</answer>"]
    written += ["<answer>[0, 0, 9, 10]</answer>"]
    assert answers_right(written, asked) == [True, False, True, False]


def test_the_shipped_model_is_half_hearted_as_its_card_says() -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = shipped("assets", "tiny-vlm")
    stages = json.loads((folder / STAGES).read_text())
    card = (folder / "README.md").read_text()
    for figures in stages.values():
        assert set(KINDS) < set(figures)
        assert " | ".join(f"{value:.1%}" for name, value in figures.items() if name != "words") in card
    assert 0.35 <= stages["half-hearted"]["all"] <= 0.75
    assert stages["capable"]["all"] - stages["half-hearted"]["all"] > 0.1
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    found = measure(model, AutoProcessor.from_pretrained(folder), count=120)
    assert found["all"] == pytest.approx(stages["half-hearted"]["all"], abs=0.12)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
