"""Answers written turn by turn: a few places of the block, drawn by confidence, and a token at each."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import NamedTuple

import torch
from torch import Tensor

from genalign.policy.language.batch import Encoded
from genalign.policy.language.sampling import drawn
from genalign.policy.unmasking.order import NOWHERE, drawn_places, gumbel
from genalign.policy.unmasking.turns import Turn, Turns, Written, flat

NEVER = 2**31 - 1  # the turn of a place that was not written


class Randoms(NamedTuple):
    """Of B rows: uniform numbers for the order of each turn (B,T,G), and for the token of each place (B,G)."""

    order: Tensor
    token: Tensor


class Writer:
    """Writes the answers of rows, of which `together` share a batch.

    ends: ids that end an answer; what is never written is `end`, one of them.
    """

    def __init__(self, turns: Turns, ends: Set[int], end: int, together: int) -> None:
        self.turns, self.ends, self.end, self.together = turns, ends, end, together

    @torch.no_grad()
    def __call__(
        self, read: Sequence[Encoded], seeds: Sequence[int], each: int, greedy: bool = False
    ) -> tuple[Written, Tensor]:
        """The tape of B rows, `each` tokens a turn, and their columns' log-probabilities (B,S), zeros where greedy."""
        length, count = self.turns.length, max(len(self.turns.spans(len(one.ids), each)) for one in read)
        drawn_by_row = [self._random(seed, count) for seed in seeds]
        order, token, noise = (torch.stack(column) for column in zip(*drawn_by_row, strict=True))
        tape = Written(
            tuple(read),
            torch.full((len(read), length), self.end),
            torch.full((len(read), length), NEVER),
            torch.full((len(read), count * each), NOWHERE),
            noise,
        )
        logp = torch.zeros(tape.places.shape)
        for first in range(0, len(read), self.together):
            block = range(first, min(first + self.together, len(read)))
            for number in range(count):
                rows = [row for row in block if self._writes(tape, row, number, each)]
                if not rows:
                    continue
                turn = self.turns.see(tape, rows, number, each)
                self._write(tape, turn, number, each, None if greedy else Randoms(order, token))
                if not greedy:
                    columns = torch.arange(number * each, (number + 1) * each)
                    logp[torch.tensor(rows)[:, None], columns] = self.turns.scores(tape, turn, number, each).cpu()
        return tape, logp

    def _write(self, tape: Written, turn: Turn, number: int, each: int, random: Randoms | None) -> None:
        """A turn: into the tape, at the places of greatest confidence, or drawn by it."""
        weight, likeliest = (x.cpu() for x in self.turns.surest(turn))
        rows, noise = torch.tensor(turn.rows), self.turns.order_noise
        if random is not None and noise:
            weight = weight / noise + gumbel(random.order[rows, number, : weight.shape[1]])
        places = drawn_places(weight, turn.free, each)  # (R,each), in the block
        row, column = (places != NOWHERE).nonzero().unbind(1)
        local = places[row, column]
        where = turn.starts[row] + local
        if random is None:
            tokens = likeliest[row, local]
        else:
            head = self.turns.head
            logits = head.logits(turn.hidden[flat(turn.free, row, local)])
            mass = head.masked(logits / head.temperature).softmax(-1)
            tokens = drawn(mass, random.token[rows[row], where][:, None].to(mass.device))[0][:, 0].cpu()
        tape.tokens[rows[row], where], tape.turn[rows[row], where] = tokens, number
        tape.places[rows[row], number * each + column] = where

    def _writes(self, tape: Written, row: int, number: int, each: int) -> bool:
        """Whether a row is not finished before a turn."""
        if number >= len(self.turns.spans(len(tape.read[row].ids), each)):
            return False
        before = (tape.turn[row] < number).tolist()
        tokens = tape.tokens[row].tolist()
        end = next((i for i, token in enumerate(tokens) if before[i] and token in self.ends), None)
        return end is None or not all(before[:end])

    def _random(self, seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a row, uniform numbers for the order (T,G) and for the tokens (G,); and its noise by turn (T,L)."""
        generator, form = torch.Generator().manual_seed(seed), self.turns.form
        order = torch.rand(count, self.turns.length, dtype=torch.float64, generator=generator)
        token = torch.rand(self.turns.length, dtype=torch.float64, generator=generator)
        width = 0 if form.masked else form.ends(0, self.turns.length)[0]
        return order, token, torch.stack([form.filler(width, generator) for _ in range(count)])
