"""What a text tower must read in the captions of melodies, and the new tower of tiny-music, taught by that."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.melody import LOUDNESSES, OMITTABLE, REGISTERS, TEMPI, caption, held_out, sample_facts, without
from genalign.lab.melody_bank import INSTRUMENTS
from genalign.lab.melody_songs import KEYS, songs
from genalign.lab.reading import Questions, new_tower, t5_states, teach_reading
from genalign.lab.text import build_tokenizer
from genalign.lab.world import Facts

TOKENS = 40
UNSAID = 0.3  # share of captions that leave a kind of fact out, each kind by itself
DRUMS = (True, False)
UNHEARD = (  # instruments that no piece has
    "harp", "cello", "oboe", "tuba", "sitar", "banjo", "accordion", "harmonica", "bassoon", "horn", "lute", "viola",
    "celesta", "dulcimer", "bagpipe", "ukulele",
)  # fmt: skip
PLAYERS = (*INSTRUMENTS, *UNHEARD)
FREE_DUETS = 0.4  # share of training captions that are of any two players
ANSWERS = (
    len(PLAYERS), len(PLAYERS) + 1, len(songs()) + 1, len(KEYS) + 1, len(TEMPI) + 1, len(REGISTERS) + 1,
    len(LOUDNESSES) + 1, len(DRUMS) + 1,
)  # fmt: skip


def answers(facts: Facts) -> list[int]:
    """Right answers: who plays the melody and who accompanies it, the melody, key, tempo, register, loudness, and
    whether there are drums; the last class of each but the first is "not stated"."""
    lead, *second = facts["voices"]
    return [
        PLAYERS.index(lead),
        _index(PLAYERS, second[0] if second else None),
        _index(tuple(songs()), facts["melody"]),
        _index(KEYS, facts["key"]),
        _index(TEMPI, facts["tempo"]),
        _index(REGISTERS, facts["register"]),
        _index(LOUDNESSES, facts["loudness"]),
        _index(DRUMS, facts["drums"]),
    ]


def _index(words: tuple[Any, ...], word: Any) -> int:
    return len(words) if word is None else words.index(word)


def free_duet(rng: np.random.Generator) -> dict[str, Any]:
    """Facts of a piece in which any two players play; nothing in them is held out.

    In pieces four instruments accompany: of those alone a tower learns by heart which of two leads, and tells it in
    half of the pairs that it has only met the other way round.
    """
    while True:
        lead, second = (str(name) for name in rng.choice(PLAYERS, size=2, replace=False))
        facts = {**sample_facts(rng, "train"), "voices": [lead, second]}
        if not held_out(facts):
            return facts


def captions(rng: np.random.Generator, rows: int, split: str) -> tuple[list[str], Tensor]:
    """Captions and their answers (rows, 8); some leave facts unsaid, and of the training split FREE_DUETS are of duets
    that no piece need have."""
    texts, right = [], []
    for _ in range(rows):
        facts = free_duet(rng) if split == "train" and rng.random() < FREE_DUETS else sample_facts(rng, split)
        for kind in OMITTABLE:
            if rng.random() < UNSAID:
                facts = without(kind, facts)
        texts.append(caption(facts, rng))
        right.append(answers(facts))
    return texts, torch.tensor(right)


MELODIES = Questions(ANSWERS, captions, TOKENS)


def melody_tokenizer() -> Any:
    return build_tokenizer(lambda rng: captions(rng, 1, "train")[0][0].lower(), TOKENS)


def build_text_tower(work: Path, steps: int = 4600, rows: int = 64) -> tuple[Any, Any, float]:
    """A new UMT5 tower, its tokenizer, and the share of held-out captions of which it reads every fact."""
    tokenizer = melody_tokenizer()
    tower = new_tower(tokenizer, TOKENS, seed=22)
    return tower, tokenizer, teach_reading(tower, tokenizer, work, steps, rows, MELODIES, t5_states, keep=0.0)
