"""The masked evidence bound of an answer, which masked diffusion language models have in the place of a likelihood.

Of an answer x of n tokens, log p(x) >= E_l E_mask [ n/l sum over the l masked places of log p(x_i | x with these
masked) ], l uniform on 1..n and the places drawn without replacement (LLaDA, arXiv 2502.09992, equation 6, which has
less variance than independent masks and the weight 1/t of its equation 3). An answer in blocks has the sum of its
blocks' bounds, each given the blocks before (BD3-LM, arXiv 2503.09573).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genalign.policy.language.batch import Encoded
from genalign.policy.unmasking.turns import Turns, spread


def hidden_places(length: int, width: int, at: float, seed: int, block: int = 0) -> Tensor:
    """(width,) bool: the l = ceil((1 - at) length) places of a block that are masked; equal seeds mask the same.

    at in [0,1), uniform: l is then uniform on 1..length.
    """
    count = min(max(math.ceil((1 - at) * length), 1), length)
    generator = torch.Generator().manual_seed((seed + block) % 2**63)
    found = torch.zeros(width, dtype=torch.bool)
    found[torch.randperm(length, generator=generator)[:count]] = True
    return found


def bound(turns: Turns, read: Sequence[Encoded], clean: Tensor, at: float, seeds: Sequence[int]) -> Tensor:
    """One draw of the evidence bound of R answers (R,G), (R,1) in nats: without bias over `at` and the seeds."""
    clean = clean.cpu()
    ends = [[0, *turns.form.ends(len(one.ids), turns.length)] for one in read]
    total = torch.zeros(len(read), device=turns.device)
    for number in range(max(map(len, ends)) - 1):
        rows = [row for row, own in enumerate(ends) if number + 1 < len(own)]
        spans = [(ends[row][number], ends[row][number + 1]) for row in rows]
        width = max(end - start for start, end in spans)
        hidden = torch.stack(
            [
                hidden_places(end - start, width, at, seeds[row], number)
                for row, (start, end) in zip(rows, spans, strict=True)
            ]
        )
        found = _of_block(turns, [read[row] for row in rows], clean[rows], spans, hidden)
        total = total.index_add(0, torch.tensor(rows, device=turns.device), found)
    return total[:, None]


def _of_block(
    turns: Turns, read: Sequence[Encoded], clean: Tensor, spans: Sequence[tuple[int, int]], hidden: Tensor
) -> Tensor:
    """n/l times the sum of log-probabilities at the hidden places (R,L) of one block a row: (R,)."""
    contexts, blocks, scale, generator = [], [], [], torch.Generator()
    targets = torch.zeros(hidden.shape, dtype=torch.long)
    for row, (start, end) in enumerate(spans):
        own, masked = clean[row, start:end], hidden[row, : end - start]
        targets[row, : end - start] = own
        contexts.append([*read[row].ids, *clean[row, :start].tolist()])
        blocks.append(torch.where(masked, turns.form.filler(len(own), generator), own).tolist())
        scale.append(len(own) / int(masked.sum()))
    tokens = targets[hidden].to(turns.device)
    logp = turns.head.scores(turns.hidden(contexts, blocks, hidden), tokens).logp
    return spread(logp, hidden, 0.0).sum(1) * torch.tensor(scale, device=logp.device)
