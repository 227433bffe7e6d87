"""What a diffusion language model sees in a turn of writing, and what it gives to what is written there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genalign.policy.language.batch import Encoded
from genalign.policy.language.head import Head
from genalign.policy.unmasking.form import Form, Ids
from genalign.policy.unmasking.order import NOWHERE, log_order


@dataclass(frozen=True)
class Written:
    """The tape: what was written where, and when.

    read: the prompt of each row. tokens (B,G): what stands at each place of the answer in the end, and turn (B,G) when
    that was written, NEVER where the row was finished before. places (B,S): the place of each column of logp, in the
    order of drawing, NOWHERE where the row has no such column. noise (B,T,L): what stands in the places of a block that
    are not written yet, by turn; L is 0 where that is always the mask.
    """

    read: tuple[Encoded, ...]
    tokens: Tensor
    turn: Tensor
    places: Tensor
    noise: Tensor = field(repr=False)


class Turn(NamedTuple):
    """The R rows that write in a turn, by number: where their blocks start in the answer (R,), which of the blocks' L
    places are free (R,L) bool, and what the head is given at the N free places, row by row (N,H)."""

    rows: list[int]
    starts: Tensor
    free: Tensor
    hidden: Tensor


class Turns:
    """A model's forwards over prompts and the answers behind them.

    length: places of an answer. order_noise: see UnmaskingPolicy. calls: forwards so far, counted in rows.
    """

    def __init__(self, head: Head, form: Form, pad: int, length: int, order_noise: float) -> None:
        self.head, self.form, self.pad = head, form, pad
        self.length, self.order_noise = length, order_noise
        self.calls = 0

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.head.model.parameters()).device
        return device

    def each(self, steps: int) -> int:
        """Tokens of a turn, where a whole block takes so many turns."""
        return -(-self.form.whole // steps)

    def spans(self, prompt: int, each: int) -> list[tuple[int, int]]:
        """The block that is written in each turn, behind a prompt of so many tokens."""
        found, start = [], 0
        for end in self.form.ends(prompt, self.length):
            found += [(start, end)] * -(-(end - start) // each)
            start = end
        return found

    def see(self, tape: Written, rows: list[int], number: int, each: int) -> Turn:
        """What was written before a turn, as the model reads it."""
        spans = [self.spans(len(tape.read[row].ids), each)[number] for row in rows]
        free = torch.zeros(len(rows), max(end - start for start, end in spans), dtype=torch.bool)
        contexts: list[Ids] = []
        blocks: list[Ids] = []
        for own, row, (start, end) in zip(free, rows, spans, strict=True):
            written = tape.turn[row, start:end] < number
            own[: end - start] = ~written
            blank = tape.noise[row, number][: end - start]
            if not len(blank):
                blank = self.form.filler(end - start, torch.Generator())
            blocks.append(torch.where(written, tape.tokens[row, start:end], blank).tolist())
            contexts.append([*tape.read[row].ids, *tape.tokens[row, :start].tolist()])
        return Turn(rows, torch.tensor([start for start, _ in spans]), free, self.hidden(contexts, blocks, free))

    def hidden(self, contexts: Sequence[Ids], blocks: Sequence[Ids], free: Tensor) -> Tensor:
        """What the head is given at the free places (R,L) of blocks: (N,H), row by row."""
        self.calls += len(blocks)
        hidden = self.head.hidden(self.form.inputs(contexts, blocks, self.pad, self.device))
        row, place = free.nonzero().unbind(1)
        offsets = torch.tensor([self.form.offset(len(context)) for context in contexts])
        return hidden[row.to(hidden.device), (offsets[row] + place).to(hidden.device)]

    @torch.no_grad()
    def surest(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """At the free places (R,L): log-probability of the likeliest token, minus infinity elsewhere; and its id."""
        best = self._likeliest(turn.hidden)
        sure = self.head.scores(turn.hidden, best).logp
        return spread(sure, turn.free, -torch.inf), spread(best, turn.free, 0)

    @torch.no_grad()
    def _likeliest(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.head.masked(self.head.logits(h)).argmax(-1) for (h,) in self.head.chunks(hidden)])

    def scores(self, tape: Written, turn: Turn, number: int, each: int) -> Tensor:
        """log p(place) + log p(token) of a turn's columns (R,each), 0 where a row has none."""
        columns = tape.places[turn.rows][:, number * each : (number + 1) * each]
        present = columns != NOWHERE
        row, column = present.nonzero().unbind(1)
        where = columns[row, column]
        tokens = tape.tokens[torch.tensor(turn.rows)[row], where].to(turn.hidden.device)
        local = torch.where(present, columns - turn.starts[:, None], NOWHERE)
        token = self.head.scores(turn.hidden[flat(turn.free, row, local[row, column])], tokens).logp
        score = spread(token, present, 0.0)
        if not self.order_noise:
            return score
        sure = self.head.scores(turn.hidden, self._likeliest(turn.hidden)).logp
        weight = spread(sure, turn.free, 0.0) / self.order_noise
        return score + log_order(weight, turn.free.to(weight.device), local.to(weight.device))


def spread(values: Tensor, where: Tensor, filler: float) -> Tensor:
    """values (N,) at the true places of `where`, row by row, and the filler elsewhere."""
    blank = torch.full(where.shape, filler, dtype=values.dtype, device=values.device)
    return blank.masked_scatter(where.to(values.device), values)


def flat(free: Tensor, row: Tensor, local: Tensor) -> Tensor:
    """Where places of rows are among all free places, row by row."""
    found: Any = (free.flatten().cumsum(0) - 1).view(free.shape)[row, local]
    return found
