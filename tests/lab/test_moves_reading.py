"""What the text tower of tiny-video must read, and that it is read as Wan's own pipeline reads it."""

from functools import partial

import numpy as np
import pytest
import torch

from genalign.lab import moves, moves_reading, reading
from genalign.lab.moves_reading import ANSWERS, MOVES, TOKENS, answers, build_text_tower, captions, moves_tokenizer
from genalign.lab.reading import t5_states
from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS


@pytest.fixture(scope="module")
def tokenizer():
    return moves_tokenizer()


def fact(*rows, passing=None, background=None):
    keys = ("name", "motion", "speed")
    return {
        "moves": [dict(zip(keys, row, strict=True)) for row in rows], "passing": passing, "background": background,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (fact(("cat", ["left"], "slow"), background="white"), ["cat", None, "left", None, "slow", None, None, "white"]),
        (fact(("key", ["up", "left"], None)), ["key", None, "up left", None, None, None, None, None]),
        (
            fact(("dog", ["up"], "fast"), ("cat", ["still"], None), background="gray"),
            ["cat", "dog", "still", "up", None, "fast", None, "gray"],
        ),
        (
            fact(("tree", ["right"], None), ("bus", ["still"], None), passing=["tree", "behind", "bus"]),
            ["tree", "bus", "right", "still", None, None, "behind", None],
        ),
    ],
)
def test_the_answers_are_what_the_caption_says(facts, expected):
    """Of two the first of the alphabet is first, unless one of them passes the other."""
    names, motions = list(sprites()), [" ".join(words) for words in moves.MOTIONS]
    classes = (names, names, motions, motions, moves.SPEEDS, moves.SPEEDS, moves.DEPTHS, list(BACKGROUNDS))
    read = [[*words, None][k] for words, k in zip(classes, answers(facts), strict=True)]
    assert read == expected
    assert all(k < count for k, count in zip(answers(facts), ANSWERS, strict=True))


def test_every_word_is_one_token_and_every_caption_fits(tokenizer):
    texts, right = captions(np.random.default_rng(0), 300, "heldout")
    assert right.shape == (300, len(ANSWERS))
    lengths = [len(ids) for ids in tokenizer(texts).input_ids]
    assert lengths == [len(text.split()) + 2 for text in texts]
    assert max(lengths) <= TOKENS


def test_a_short_lesson_makes_a_tower_that_a_wan_pipeline_reads(tmp_path, tokenizer, monkeypatch):
    """The states that are taught are those that diffusers' WanPipeline gives its transformer."""
    from diffusers import WanPipeline

    monkeypatch.setattr(moves_reading, "moves_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(reading, "reading", partial(reading.reading, rows=32))
    tower, _, share = build_text_tower(tmp_path, steps=2, rows=4)
    assert 0 <= share <= 1
    texts, _ = captions(np.random.default_rng(1), 3, "train")
    pipeline = WanPipeline(tokenizer=tokenizer, text_encoder=tower, transformer=None, vae=None, scheduler=None)
    with torch.no_grad():
        theirs = pipeline._get_t5_prompt_embeds(texts, max_sequence_length=TOKENS)
        (ours,) = t5_states(tower, tokenizer, texts, TOKENS)
    assert torch.allclose(ours, theirs, atol=1e-6)
    again, _, second = build_text_tower(tmp_path, steps=2, rows=4)  # nothing is taught twice
    assert second == share
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), tower.parameters(), strict=True))
    assert MOVES.answers == ANSWERS
