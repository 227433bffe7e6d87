"""The prompt files of the worlds: true captions and their facts, split by what is held out."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from genalign.lab import melody, moves, sums
from genalign.lab.world import caption, sample_facts

PROMPTS = {"train": 4096, "heldout": 1024}
MOVES_PROMPTS = {"train": 2048, "heldout": 640}  # and of melodies and sums
BACKGROUND_STATED = 0.6  # share of prompts that state what may be left out; of melodies MELODY_STATED
MELODY_STATED = 0.5


def build_prompts(folder: Path, seed: int = 20) -> None:
    """train.jsonl and heldout.jsonl: true captions and their facts, no text twice, split by combination; and
    train-hard.jsonl, those of train.jsonl that state a relation or a count above one; train-open.jsonl and
    heldout-open.jsonl, those that state no background."""
    for index, (split, count) in enumerate(PROMPTS.items()):
        rng = np.random.default_rng((seed, index))
        rows: dict[str, dict[str, Any]] = {}
        while len(rows) < count:
            facts = sample_facts(rng, split)
            lone = len(facts["objects"]) == 1 and facts["objects"][0]["count"] == 1
            if not (lone and split == "heldout") and rng.random() > BACKGROUND_STATED:
                facts["background"] = None
            rows.setdefault(text := caption(facts, rng), {"prompt": text, "facts": facts})
        write_rows(folder / f"{split}.jsonl", rows.values())
        write_rows(folder / f"{split}-open.jsonl", (row for row in rows.values() if row["facts"]["background"] is None))
        if split == "train":
            write_rows(folder / "train-hard.jsonl", filter(_is_hard, rows.values()))


def build_moves(folder: Path, seed: int = 21) -> None:
    """train.jsonl and heldout.jsonl of EmojiWorld moves; some leave the background or the speed unsaid."""
    _build_facts(folder, seed, moves, ("background", "speed"), BACKGROUND_STATED)


def build_melodies(folder: Path, seed: int = 22) -> None:
    """train.jsonl and heldout.jsonl of MelodyWorld; each leaves some of melody.OMITTABLE unsaid."""
    _build_facts(folder, seed, melody, melody.OMITTABLE, MELODY_STATED)


def _build_facts(folder: Path, seed: int, world: Any, omittable: Iterable[str], share: float) -> None:
    """True captions and their facts, no text twice, split by what the caption states."""
    for index, (split, count) in enumerate(MOVES_PROMPTS.items()):
        rng = np.random.default_rng((seed, index))
        rows: dict[str, dict[str, Any]] = {}
        while len(rows) < count:
            facts = world.sample_facts(rng, split)
            for kind in omittable:
                if rng.random() > share:
                    facts = world.without(kind, facts)
            if world.held_out(facts) == (split == "heldout"):
                rows.setdefault(text := world.caption(facts, rng), {"prompt": text, "facts": facts})
        write_rows(folder / f"{split}.jsonl", rows.values())


def build_sums(folder: Path, seed: int = 25) -> None:
    """train.jsonl and heldout.jsonl of SumWorld: questions and their facts, no text twice, split by the two numbers."""
    for index, (split, count) in enumerate(MOVES_PROMPTS.items()):
        rng = np.random.default_rng((seed, index))
        rows: dict[str, dict[str, Any]] = {}
        while len(rows) < count:
            facts = sums.sample_facts(rng, split)
            rows.setdefault(text := sums.question(facts, rng), {"prompt": text, "facts": facts})
        write_rows(folder / f"{split}.jsonl", rows.values())


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _is_hard(row: dict[str, Any]) -> bool:
    facts = row["facts"]
    return facts["relation"] is not None or (len(facts["objects"]) == 1 and facts["objects"][0]["count"] > 1)
