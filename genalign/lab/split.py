"""Which facts a world holds out: fixed by a hash of what they combine, without random state."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

HELD_OUT_SHARE = 0.15
Facts = Mapping[str, Any]


def is_held_out(combination: str) -> bool:
    """Whether a combination is one of HELD_OUT_SHARE."""
    digest = hashlib.sha256(combination.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def sample_split(
    draw: Callable[[np.random.Generator], dict[str, Any]],
    held_out: Callable[[Facts], bool],
    rng: np.random.Generator,
    split: str | None,
) -> dict[str, Any]:
    """The first facts drawn that are of the split: "train", "heldout" or None for either.

    Raises:
        ValueError: unknown split.
    """
    if split not in ("train", "heldout", None):
        raise ValueError(f"split must be 'train', 'heldout' or None, not {split!r}")
    while True:
        facts = draw(rng)
        if split is None or held_out(facts) == (split == "heldout"):
            return facts
