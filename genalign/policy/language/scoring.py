"""Written tokens scored: one forward over whole rows, and the head where the model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import compress

import torch
from torch import Tensor

from genalign.policy.adapter import Adapter
from genalign.policy.language.batch import Encoded, batch
from genalign.policy.language.head import Head, Scored
from genalign.types import Weights


@dataclass(frozen=True)
class Tokens:
    """The tape: token ids of every row, unpadded, and its prompt with its media as the model reads it.

    A completion ends with its end-of-sequence token if it has one. own: which of its tokens the model wrote; the others
    are a tool's.
    """

    prompt: tuple[tuple[int, ...], ...]
    completion: tuple[tuple[int, ...], ...]
    own: tuple[tuple[bool, ...], ...]
    read: tuple[Encoded, ...] = field(compare=False, repr=False)

    def mask(self, rows: Sequence[int]) -> Tensor:
        """(R,S) bool, S the longest completion of these rows: the tokens that the model wrote."""
        found = torch.zeros(len(rows), max(len(self.own[row]) for row in rows), dtype=torch.bool)
        for place, row in zip(found, rows, strict=True):
            place[: len(self.own[row])] = torch.tensor(self.own[row])
        return found


class Scorer:
    """Scores rows of a tape: padded on the right, without a cache, under the weights that are in use.

    calls: rows that a forward was made for.
    """

    def __init__(self, head: Head, adapter: Adapter, pad: int) -> None:
        self.head, self.adapter, self.pad = head, adapter, pad
        self.calls = 0

    @property
    def device(self) -> torch.device:
        return next(self.head.model.parameters()).device

    def __call__(self, tape: Tokens, rows: Sequence[int], versus: Weights | None = None) -> tuple[Scored, Tensor]:
        """Of the rows' tokens, (R,S') each: log-probabilities, 0 in padding; those versus other weights, and KL; and
        the hidden states (N,H) before the tokens."""
        hidden, tokens, mask = self.before_tokens(tape, rows)
        other = None
        if versus is not None:
            with torch.no_grad(), self.adapter.weights(versus):
                other = self.before_tokens(tape, rows)[0]
        found = self.head.scores(hidden, tokens, other)
        blank = torch.zeros(mask.shape, device=mask.device)
        logp, *others = (None if x is None else blank.masked_scatter(mask, x) for x in found)
        assert logp is not None
        return Scored(logp, *others), hidden

    def before_tokens(self, tape: Tokens, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the N tokens that the model wrote, row by row, what the head is given before each (N,H), and their ids
        (N,); and where they are (R,S')."""
        completions = [tape.completion[row] for row in rows]
        hidden = self.head.hidden(batch([tape.read[row] for row in rows], completions, self.pad, self.device))
        self.calls += len(rows)
        mask = tape.mask(rows)
        row, column = mask.nonzero().unbind(1)
        starts = torch.tensor([len(tape.prompt[row]) for row in rows])
        own = [tape.own[row] for row in rows]
        tokens = torch.tensor([t for ids, kept in zip(completions, own, strict=True) for t in compress(ids, kept)])
        before = hidden[row.to(self.device), (starts[row] + column - 1).to(self.device)]
        return before, tokens.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def logits_alone(self, rows: Sequence[Encoded], completions: Sequence[Sequence[int]]) -> list[Tensor]:
        """The logits (S,V) at a completion of each of R prompts, by a forward of its own."""
        found = []
        for row, completion in zip(rows, completions, strict=True):
            hidden = self.head.hidden(batch([row], [completion], self.pad, self.device))[0]
            found.append(self.head.logits(hidden[len(row.ids) - 1 : -1]))
        return found

    @torch.no_grad()
    def certainty(self, tape: Tokens, rows: Sequence[int]) -> Tensor:
        """(R,) the mean certainty of the head over a row's tokens."""
        hidden, _, mask = self.before_tokens(tape, rows)
        found = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, self.head.certainty(hidden))
        return (found.sum(1) / mask.sum(1)).cpu()
