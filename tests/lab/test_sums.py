"""SumWorld: its verifier on written-out answers, its tokenizer, and the builders of its two models at a few steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genalign.lab.lm import PLAIN, build_lm, halfheartedly, save_lm
from genalign.lab.mdlm import HIDDEN, PLACES, build_mdlm, masked_examples, save_mdlm
from genalign.lab.sums import FORMS, answer, held_out, question, sample_facts, spelled, verify, without_carry
from genalign.lab.sums_card import sums_card
from genalign.lab.sums_text import encoded, sums_tokenizer
from genalign.policy import load_policy
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import Prompt

PLUS = {"a": 17, "b": 26, "operation": "plus", "answer": "43"}
MINUS = {"a": 43, "b": 26, "operation": "minus", "answer": "17"}


@pytest.mark.parametrize(
    ("said", "facts", "form", "number", "shaped"),
    [
        ("<answer>43</answer>", PLUS, "tag", True, True),
        (" <answer>43</answer>\n", PLUS, "tag", True, True),
        ("<answer> 43 </answer>", PLUS, "tag", True, False),
        ("It is <answer>43</answer>", PLUS, "tag", True, False),
        ("43", PLUS, "tag", True, False),
        ("<answer>33</answer>", PLUS, "tag", False, True),
        ("forty three", PLUS, "words", True, True),
        ("forty-three", PLUS, "words", False, False),
        ("forty four", PLUS, "words", False, True),
        ("43", PLUS, "words", True, False),
        ("17 + 26 = 43", PLUS, "equation", True, True),
        ("26 + 17 = 43", PLUS, "equation", True, False),
        ("17 + 26 = 33", PLUS, "equation", False, True),
        ("43 - 26 = 17", MINUS, "equation", True, True),
        ("17", MINUS, "digits", True, True),
        ("17.", MINUS, "digits", True, False),
        ("43 17", MINUS, "digits", True, False),
        ("seventeen", MINUS, "digits", True, False),
        ("", MINUS, "digits", False, False),
    ],
)
def test_the_verifier_on_written_out_answers(said, facts, form, number, shaped):
    assert verify(said, {**facts, "form": form}) == {"number": number, "form": shaped, "all": number and shaped}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        *[(0, "zero"), (7, "seven"), (13, "thirteen"), (20, "twenty"), (41, "forty one"), (98, "ninety eight")],
        *[(100, "one hundred"), (118, "one hundred eighteen"), (240, "two hundred forty")],
    ],
)
def test_numbers_are_spelled(number, words):
    assert spelled(number) == words


@pytest.mark.parametrize(
    ("a", "operation", "b", "forgot"),
    [(17, "plus", 26, 33), (12, "plus", 13, 25), (8, "plus", 5, 3), (43, "minus", 26, 27), (47, "minus", 26, 21)],
)
def test_what_it_is_to_forget_the_carry(a, operation, b, forgot):
    assert without_carry({"a": a, "b": b, "operation": operation}) == forgot


def test_every_right_answer_is_verified_and_held_out_numbers_are_never_asked_in_training():
    rng, asked = np.random.default_rng(0), {"train": set(), "heldout": set()}
    for split, seen in asked.items():
        for _ in range(2000):
            facts = sample_facts(rng, split)
            assert verify(answer(facts), facts)["all"]
            low, high = sorted((facts["b"], int(facts["answer"]) if facts["operation"] == "minus" else facts["a"]))
            assert held_out(low, high) == held_out(high, low) == (split == "heldout")
            seen.add((low, high))
    assert not asked["train"] & asked["heldout"]


def test_half_hearted_answers_err_as_often_as_stated():
    rng, wrong = np.random.default_rng(1), dict.fromkeys(FORMS, 0)
    count = dict.fromkeys(FORMS, 0)
    for _ in range(6000):
        facts = sample_facts(rng)
        count[facts["form"]] += 1
        wrong[facts["form"]] += not verify(halfheartedly(facts, rng), facts)["form"]
    for form, share in PLAIN.items():
        assert abs(wrong[form] / count[form] - share) < 0.05


def test_the_tokenizer_gives_back_every_text():
    tokenizer, rng = sums_tokenizer(), np.random.default_rng(2)
    for _ in range(200):
        facts = sample_facts(rng, None)
        for text in (question(facts, rng), answer(facts), "Grüße, 3 °C!"):
            assert tokenizer.decode(tokenizer(text).input_ids) == text
    asked, said = encoded(tokenizer, "What is 17 + 26?", "43")
    assert tokenizer.decode(asked + said) == "<|user|>What is 17 + 26?<|end|><|assistant|>43<|end|>"


def test_masked_examples_hide_answers_alone_and_keep_what_they_hid():
    tokenizer, rows = sums_tokenizer(), 6
    said = lambda facts, rng: answer(facts)  # noqa: E731
    ids, flat, targets = masked_examples(tokenizer, np.random.default_rng(3), rows, said)
    assert (ids == tokenizer.mask_token_id).flatten().nonzero()[:, 0].tolist() == flat.tolist()
    filled, rng = ids.flatten().index_copy(0, flat, targets).view(ids.shape), np.random.default_rng(3)
    for row in range(rows):
        facts = sample_facts(rng)
        written = f"{question(facts, rng)}<|end|><|assistant|>{answer(facts)}<|end|>"
        assert written in tokenizer.decode(filled[row])
        _ = rng.random() < HIDDEN or rng.integers(1, PLACES + 1), rng.permutation(PLACES)


@pytest.mark.parametrize(
    ("build", "save", "name"), [(build_lm, save_lm, "tiny-lm"), (build_mdlm, save_mdlm, "tiny-mdlm")]
)
def test_a_model_is_built_resumed_and_loads_as_a_policy(build, save, name, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("genalign.lab.lm.accuracy.__defaults__", (12, 24))
    model, tokenizer, figures = build(tmp_path / "work", steps=(2, 1), rows=4)
    (stage,) = tmp_path.glob("work/*half-hearted.safetensors")
    stage.unlink()  # killed before the second stage
    again, _, _ = build(tmp_path / "work", steps=(2, 1), rows=4)
    for one, other in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    save(model, tokenizer, figures, tmp_path / name)
    assert "| half-hearted |" in sums_card(tmp_path / name)
    settings = PolicySettings(model=name, lora=Lora(rank=2), max_new_tokens=16, batch_size=4)
    policy = load_policy(settings, tmp_path / name)
    assert next(policy.model.parameters()).dtype == torch.float32
    trajectory = policy.rollout([Prompt("What is 2 + 3?")], 2, 0)
    assert len(trajectory.media["text"]) == 2
