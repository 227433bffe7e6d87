"""Conversations within one completion: a tool answers between a model's turns, in tokens that are read, not learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from genalign.policy.language.batch import Encoded
from genalign.policy.language.chat import Chat
from genalign.types import Prompt

Turn = dict[str, str]  # {"role", "content"}


class Environment(Protocol):
    """What answers a model's turns, such as a tool: a function of the conversation so far, and of nothing else."""

    @property
    def version(self) -> str:
        """What tells it from others, and from itself once it is changed."""
        ...

    def __call__(self, prompts: Sequence[Prompt], turns: Sequence[Sequence[Turn]]) -> Sequence[str | None]:
        """An answer a row, or None where the row is finished. turns: those since the prompt, of roles assistant and
        tool."""
        ...


@dataclass
class Written:
    """A completion. own: which of its ids the model wrote. turns: what was said since the prompt."""

    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    def add(self, ids: Sequence[int], own: bool) -> None:
        self.ids += ids
        self.own += [own] * len(ids)


@dataclass(frozen=True)
class Conversation:
    """Completions of at most `longest` tokens, those of the tool included, and at most `turns` turns of the model.

    draw: (prompts, longest, uniform (R,longest) or None) -> the model's tokens for each, up to their end. A row goes on
    where its turn has ended by an end token, the tool answers, and there is room for the answer and a token more.
    """

    chat: Chat
    draw: Callable[[Sequence[Encoded], int, Tensor | None], list[list[int]]]
    environment: Environment | None
    longest: int
    turns: int

    def __call__(self, prompts: Sequence[Prompt], encoded: Sequence[Encoded], uniform: Tensor | None) -> list[Written]:
        """uniform: each row's own numbers (R,longest), of which a token that it draws takes the next; None: greedy."""
        found = [Written() for _ in prompts]
        open_rows = list(range(len(prompts)))
        for turn in range(self.turns if self.environment is not None else 1):
            if turn:
                open_rows = self._answered(prompts, found, open_rows)
            if not open_rows:
                break
            self._say(encoded, uniform, found, open_rows)
        return found

    def _say(
        self, encoded: Sequence[Encoded], uniform: Tensor | None, found: Sequence[Written], rows: Sequence[int]
    ) -> None:
        """The next turn of the model in these rows."""
        rooms = [self.longest - len(found[row].ids) for row in rows]
        numbers = None
        if uniform is not None:
            taken = [uniform[row, sum(found[row].own) :] for row in rows]
            numbers = torch.stack([F.pad(own, (0, self.longest - len(own)))[: max(rooms)] for own in taken])
        behind = [_behind(encoded[row], found[row].ids) for row in rows]
        for row, room, drawn in zip(rows, rooms, self.draw(behind, max(rooms), numbers), strict=True):
            ids = drawn[:room]
            found[row].add(ids, own=True)
            opening = encoded[row] if not found[row].turns else replace(encoded[row], opening="")
            found[row].turns.append({"role": "assistant", "content": self.chat.text(opening, ids)})

    def _answered(self, prompts: Sequence[Prompt], found: Sequence[Written], rows: Sequence[int]) -> list[int]:
        """Of these rows those that the environment answers, with the answer behind what was said."""
        assert self.environment is not None
        ended = [row for row in rows if found[row].ids and found[row].ids[-1] in self.chat.ends]
        if not ended:
            return []
        answers = self.environment([prompts[row] for row in ended], [found[row].turns for row in ended])
        going = []
        for row, answer in zip(ended, answers, strict=True):
            if answer is None:
                continue
            ids = self.chat.tool_turn(answer, after=found[row].ids[-1])
            if len(found[row].ids) + len(ids) < self.longest:
                found[row].add(ids, own=False)
                found[row].turns.append({"role": "tool", "content": answer})
                going.append(row)
        return going


def _behind(row: Encoded, completion: Sequence[int]) -> Encoded:
    """A prompt with what was said since."""
    if not completion:
        return row
    along = {name: (*values, *[0] * len(completion)) for name, values in row.along.items()}
    return replace(row, ids=(*row.ids, *completion), along=along)
