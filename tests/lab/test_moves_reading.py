"""What the text tower of tiny-video must read, and that it is read as Wan's own pipeline reads it."""

from functools import partial

import numpy as np
import pytest
import torch

from genalign.lab import moves, moves_reading, reading
from genalign.lab.moves_reading import (
    ANSWERS,
    MOVES,
    TOKENS,
    answers,
    build_text_tower,
    captions,
    free_pair,
    moves_tokenizer,
)
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
    ("facts", "text", "expected"),
    [
        (
            fact(("cat", ["left"], "slow"), background="white"),
            "a cat slowly moves left on white",
            ["cat", None, "left", None, "slow", None, None, "white"],
        ),
        (
            fact(("key", ["up", "left"], None)),
            "a key moves up and then left",
            ["key", None, "up left", None, None, None, None, None],
        ),
        (
            fact(("blue car", ["up"], "fast"), ("cat", ["still"], None), background="gray"),
            "a cat stays still and a blue car rises fast on gray",
            ["cat", "blue car", "still", "up", None, "fast", None, "gray"],
        ),
        (
            fact(("tree", ["right"], None), ("bus", ["still"], None), passing=["tree", "behind", "bus"]),
            "a bus stands still while a tree moves right behind it",
            ["tree", "bus", "right", "still", None, None, "behind", None],
        ),
    ],
)
def test_the_answers_are_what_the_caption_says(facts, text, expected):
    """Of two the one that is named first is first, unless one of them passes the other."""
    names, motions = list(sprites()), [" ".join(words) for words in moves.MOTIONS]
    classes = (names, names, motions, motions, moves.SPEEDS, moves.SPEEDS, moves.DEPTHS, list(BACKGROUNDS))
    read = [[*words, None][k] for words, k in zip(classes, answers(facts, text), strict=True)]
    assert read == expected
    assert all(k < count for k, count in zip(answers(facts, text), ANSWERS, strict=True))


def test_free_pairs_are_of_two_objects_with_any_motions_and_never_held_out():
    rng = np.random.default_rng(3)
    pairs = [free_pair(rng) for _ in range(400)]
    assert not any(moves.held_out(facts) for facts in pairs)
    assert all(len({move["name"] for move in facts["moves"]}) == 2 for facts in pairs)
    apart = {tuple(move["motion"]) for facts in pairs if not facts["passing"] for move in facts["moves"]}
    assert apart == set(moves.MOTIONS)
    passing = {tuple(tuple(move["motion"]) for move in facts["moves"]) for facts in pairs if facts["passing"]}
    assert passing == {(("left",), ("still",)), (("right",), ("still",))}


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
