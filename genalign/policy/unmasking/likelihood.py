"""The masked evidence bound of an answer, which masked diffusion language models have in the place of a likelihood.

Of an answer x of n tokens, log p(x) >= E_l E_mask [ n/l sum over the l masked places of log p(x_i | x with these
masked) ], l uniform on 1..n and the places drawn without replacement (LLaDA, arXiv 2502.09992, equation 6, which has
less variance than independent masks and the weight 1/t of its equation 3). An answer in blocks has the sum of its
blocks' bounds, each given the blocks before (BD3-LM, arXiv 2503.09573).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hidden_places(length: int, width: int, at: float, seed: int, block: int = 0) -> Tensor:
    """(width,) bool: the l = ceil((1 - at) length) places of a block that are masked; equal seeds mask the same.

    at in [0,1), uniform: l is then uniform on 1..length.
    """
    count = min(max(math.ceil((1 - at) * length), 1), length)
    generator = torch.Generator().manual_seed((seed + block) % 2**63)
    found = torch.zeros(width, dtype=torch.bool)
    found[torch.randperm(length, generator=generator)[:count]] = True
    return found
