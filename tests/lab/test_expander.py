"""The builder of the prompt expander at a few steps, and what its card measures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genalign.lab.expander import (
    IGNORED,
    background_of,
    build_expander,
    examples,
    expander_accuracy,
    expansion,
    keeps,
    save_expander,
)
from genalign.lab.text import shipped_tokenizer
from genalign.policy.language import load_language
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import Prompt


def test_an_expansion_says_all_that_was_asked_and_a_background():
    rng, shorter = np.random.default_rng(0), 0
    for _ in range(300):
        asked, written, facts = expansion(rng)
        assert keeps(asked, facts)
        assert keeps(written, facts)
        assert background_of(written) is not None
        shorter += len(asked.split()) < len(written.split())
    assert shorter > 150


@pytest.mark.parametrize(
    ("text", "objects", "background", "kept"),
    [
        ("three red apples on a blue background", [("red apple", 3)], "blue", True),
        ("3 red apples", [("red apple", 3)], None, True),
        ("two red apples on blue", [("red apple", 3)], "blue", False),
        ("a green apple on blue", [("red apple", 1)], "blue", False),
        ("a blue car on a pink background", [("blue car", 1)], "blue", False),
        ("a cat and a dog", [("cat", 1), ("dog", 1)], None, True),
        ("a cat", [("cat", 1), ("dog", 1)], None, False),
    ],
)
def test_what_it_means_to_keep_a_prompt(text, objects, background, kept):
    facts = {"objects": [{"name": n, "count": c} for n, c in objects], "relation": None, "background": background}
    assert keeps(text, facts) == kept


def test_only_what_is_written_is_learnt():
    tokenizer = shipped_tokenizer()
    ids, labels = examples(tokenizer, np.random.default_rng(1), 5)
    rng = np.random.default_rng(1)
    for row in range(5):
        asked, written, _ = expansion(rng)
        learnt = labels[row] != IGNORED
        assert tokenizer.decode(ids[row][learnt], skip_special_tokens=True).split() == written.split()
        assert torch.equal(ids[row][learnt], labels[row][learnt])
        before = ids[row][: int(learnt.nonzero()[0])]
        assert tokenizer.decode(before, skip_special_tokens=True).split() == asked.split()
        assert before[-1] == tokenizer.eos_token_id == ids[row][learnt][-1]


def test_a_few_steps_build_a_folder_that_the_policy_loads(tmp_path: Path):
    model, tokenizer = build_expander(tmp_path / "work", steps=40, rows=16)
    ids, labels = examples(tokenizer, np.random.default_rng(9), 64)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels).loss
    assert loss < 6.0  # it starts at the logarithm of the vocabulary, 6.6
    save_expander(model, tokenizer, tmp_path / "out")
    shares = expander_accuracy(tmp_path / "out", count=4)
    assert all(0 <= share <= 1 for share in shares)
    policy = load_language(PolicySettings(model="x", max_new_tokens=24, lora=Lora(rank=2)), tmp_path / "out")
    trajectory = policy.rollout([Prompt("two cats")], 3, seed=0)
    assert all(text for text in trajectory.media["text"].data)
    again = build_expander(tmp_path / "work", steps=40, rows=16)[0]  # the finished training is resumed, not repeated
    assert torch.equal(again.half().model.norm.weight, model.model.norm.weight)
