"""Whether a model writes by the distribution that is scored, and how its rows may share a batch: not all classes do.

What is recorded and trained on are the logits of one forward over a whole row. Whether `generate`, which decodes from a
cache in left-padded batches, samples from the same logits, no log-ratio can show, as both of its sides come from that
forward. In transformers 5.24, MiniMax attends to padding where its first layer is a linear one; RecurrentGemma and
xLSTM take left padding for text; RWKV, which has no mask, mixes the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from genalign.types import GenalignError

Way = Literal["shared", "padded", "equal", "alone"]
"""How prompts are continued, the cheapest first: left-padded in one batch, siblings' prompt computed once; left-padded;
in batches of equal length; row by row."""
WAYS: tuple[Way, ...] = get_args(Way)
TOKENS = (
    3  # of a trial: one from the prompt, one from the cache that the prompt made, one from what decoding made of it
)
EXACT = (
    1e-3  # of the spread of the logits: float32 differs by 1e-6 (4e-5 in linear attention), a wrong position by more
)
ROUNDING = 0.05  # the same in 16 bits, on the average of squares: more than bfloat16 differs by, less than another row

Continue = Callable[[Way], tuple[Tensor, Tensor]]
Forward = Callable[[Tensor], Tensor]


def agree(ours: Tensor, theirs: Tensor, half: bool = False) -> bool:
    """Whether two tensors of logits (..., V) are the same but for rounding; half: computed in 16 bits."""
    spread, apart = theirs.std(), (ours - theirs).abs()
    off, most = (apart.square().mean().sqrt(), ROUNDING) if half else (apart.max(), EXACT)
    return bool(off <= most * spread)


@torch.no_grad()
def cheapest_way(name: str, half: bool, continued: Continue, forward: Forward) -> Way:
    """The first way in which tokens are written by the logits that the model's forward gives for each row alone.

    name: the model's class. half: whether it computes in 16 bits. continued: the tokens (R,S) that the rows of a trial
    are continued by in some way, and the raw logits (R,S,V) of that. forward: the logits (R,S,V) of given tokens behind
    the same prompts.

    Raises:
        GenalignError: no way agrees.
    """
    for way in WAYS:
        try:
            tokens, logits = continued(way)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            if way != "shared":  # there are caches that cannot be repeated
                raise
            continue
        expected = forward(tokens)
        if agree(logits, expected, half):
            return way
    off, spread = float((logits - expected).abs().max()), float(expected.std())
    raise GenalignError(
        f"{name} writes by other logits than its forward gives for the same tokens (they differ by up to {off:.2g}, "
        f"their spread is {spread:.2g}), so log-probabilities of its samples would be wrong; take "
        f"policy.dtype=float32, or another class of model"
    )
