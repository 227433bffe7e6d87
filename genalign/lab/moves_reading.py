"""What a text tower must read in the captions of moving clips, and the new tower of tiny-video, taught by that."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.lab.moves import DEPTHS, DIRECTIONS, MOTIONS, SPEEDS, caption, held_out, sample_facts, without
from genalign.lab.reading import NAMELESS, Questions, new_tower, t5_states, teach_reading
from genalign.lab.sprites import sprites
from genalign.lab.text import build_tokenizer
from genalign.lab.world import BACKGROUNDS, Facts, article

TOKENS = 32
SPEEDLESS = 0.35  # share of captions without a speed
FREE_PAIRS = 0.4  # share of training captions that are of two objects with any motions
ANSWERS = (
    len(sprites()), len(sprites()) + 1, len(MOTIONS), len(MOTIONS) + 1, len(SPEEDS) + 1, len(SPEEDS) + 1,
    len(DEPTHS) + 1, len(BACKGROUNDS) + 1,
)  # fmt: skip


def answers(facts: Facts, text: str) -> list[int]:
    """Right answers: first object, second object, their motions, their speeds, how the first passes the second, and the
    background; the last class of each but the first object and its motion is "not stated". First is the one that
    passes, or else of two the one that `text`, the caption, names first."""
    names, moves = list(sprites()), list(facts["moves"])
    if facts["passing"] is None:
        moves.sort(key=lambda move: text.index(f"{article(move['name'])} {move['name']} "))
    first, other = moves[0], moves[1] if len(moves) > 1 else None
    return [
        names.index(first["name"]),
        names.index(other["name"]) if other else len(names),
        MOTIONS.index(tuple(first["motion"])),
        MOTIONS.index(tuple(other["motion"])) if other else len(MOTIONS),
        _index(SPEEDS, first["speed"]),
        _index(SPEEDS, other["speed"] if other else None),
        _index(DEPTHS, facts["passing"] and facts["passing"][1]),
        _index(tuple(BACKGROUNDS), facts["background"]),
    ]


def _index(words: tuple[str, ...], word: str | None) -> int:
    return len(words) if word is None else words.index(word)


def free_pair(rng: np.random.Generator) -> dict[str, Any]:
    """Facts of two objects with any motions, half of them of one that passes the other; nothing in them is held out.

    In clips only one caption in five is of two objects: of those alone a tower learns the pairs by heart, and tells who
    passes whom in 85% of pairs it has not met.
    """
    while True:
        first, second = (str(name) for name in rng.choice(list(sprites()), size=2, replace=False))
        moves, passing = [_any_move(first, rng), _any_move(second, rng)], None
        if rng.random() < 0.5:
            motion = [str(rng.choice(["left", "right"]))]
            moves = [_move(first, motion), _move(second, ["still"])]
            passing = [first, str(rng.choice(DEPTHS)), second]
        facts = {"moves": moves, "passing": passing, "background": str(rng.choice(list(BACKGROUNDS)))}
        if not held_out(facts):
            return facts


def _any_move(name: str, rng: np.random.Generator) -> dict[str, Any]:
    motion = list(MOTIONS[rng.integers(len(MOTIONS))])
    return _move(name, motion, str(rng.choice(SPEEDS)) if motion[0] in DIRECTIONS and len(motion) == 1 else None)


def _move(name: str, motion: list[str], speed: str | None = None) -> dict[str, Any]:
    return {"name": name, "motion": motion, "speed": speed}


def captions(rng: np.random.Generator, rows: int, split: str) -> tuple[list[str], Tensor]:
    """Captions and their answers (rows, 8); some leave the speed or the background unsaid, and of the training split
    FREE_PAIRS are of pairs that no clip need show."""
    texts, right = [], []
    for _ in range(rows):
        facts = free_pair(rng) if split == "train" and rng.random() < FREE_PAIRS else sample_facts(rng, split)
        if rng.random() < NAMELESS:
            facts = without("background", facts)
        if rng.random() < SPEEDLESS:
            facts = without("speed", facts)
        texts.append(caption(facts, rng))
        right.append(answers(facts, texts[-1]))
    return texts, torch.tensor(right)


MOVES = Questions(ANSWERS, captions, TOKENS)


def moves_tokenizer() -> Any:
    return build_tokenizer(lambda rng: caption(sample_facts(rng), rng), TOKENS)


def build_text_tower(work: Path, steps: int = 4600, rows: int = 64) -> tuple[Any, Any, float]:
    """A new tower of the class that Wan's pipelines have (UMT5EncoderModel), its tokenizer, and the share of held-out
    captions of which it reads every fact: what the tower does not tell, no denoiser that reads it can draw."""
    tokenizer = moves_tokenizer()
    tower = new_tower(tokenizer, TOKENS, seed=12)
    share = teach_reading(tower, tokenizer, work / "moves", steps, rows, MOVES, t5_states, keep=0.0)
    return tower, tokenizer, share
