"""Scenes that teach number apart from the object: mixed counts, and sizes that do not give the number away.

In EmojiWorld's own scenes an object of which "two" is held out is only ever drawn in threes and fours, and two objects
are always larger than three. A model that is to draw two of it needs to have seen the object, and the number, in more
company than that.
"""

from typing import Any

import numpy as np

from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS, Scene, held_out, place, sample_facts

MIXED = ((1, 2), (2, 1), (2, 2), (1, 3), (3, 1))  # how many of two kinds
MIXED_SHARE = 0.6
SMALLEST = 19  # pixels; the judge and the verifier know objects of this size from scenes of four


def mixed_facts(rng: np.random.Generator, split: str | None = "train") -> dict[str, Any]:
    """Facts of a scene of two kinds, some of them several. In the training split it contains nothing held out: neither
    the whole, nor the pair of kinds, nor that many of one kind. `split`: as `sample_facts` has it."""
    while True:
        names = rng.choice(list(sprites()), size=2, replace=False)
        counts = MIXED[rng.integers(len(MIXED))]
        objects = [{"name": str(name), "count": count} for name, count in zip(names, counts, strict=True)]
        facts = {"objects": objects, "relation": None, "background": str(rng.choice(list(BACKGROUNDS)))}
        pair = {**facts, "objects": [{**o, "count": 1} for o in objects]}
        several = [{**facts, "objects": [one]} for one, count in zip(objects, counts, strict=True) if count > 1]
        if split is None or any(held_out(part) for part in (facts, pair, *several)) == (split == "heldout"):
            return facts


def counting_facts(rng: np.random.Generator) -> dict[str, Any]:
    """Facts of two kinds of mixed counts, or one to four of a kind from the training split."""
    if rng.random() < MIXED_SHARE:
        return mixed_facts(rng)
    while True:
        facts = sample_facts(rng, "train")
        if len(facts["objects"]) == 1:
            return facts


def counting_scene(rng: np.random.Generator) -> Scene:
    return place(counting_facts(rng), rng, smallest=SMALLEST)
