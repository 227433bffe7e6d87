"""A judge of the questions that each prompt brings along, with their answers: Soft-TIFA, GenEval 2's measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from genalign.reward.base import ScoringError, first_repeated
from genalign.reward.judge.asking import brings, known_of, needs_of, shown
from genalign.reward.judge.base import Answer, Judge
from genalign.reward.template import places
from genalign.types import Media, Prompt, Scores, UsageError, nearest

FACT = "questions"
Mean = Literal["geometric", "arithmetic"]
SHAPE = 'write [{"question": "How many dogs are there?", "answer": "two", "kind": "count"}]'


@dataclass(frozen=True)
class Asked:
    """One question of a prompt: its right answer, one word or number, and the kind that it belongs to, if any."""

    question: str
    answer: str
    kind: str | None


@dataclass(kw_only=True, eq=False, repr=False)
class QuestionsJudge(Judge):
    """score = mean over the prompt's own questions of p(right answer | sample, question), in [0,1].

    The questions are the prompt's fact `questions`: a list of mappings with a `question`, its `answer` (yes where left
    out) and a `kind`. mean: geometric is Soft-TIFA's score of a prompt, arithmetic that of its atoms (GenEval 2, arXiv
    2512.16853). kinds: those that are to be aspects of their own, each the arithmetic mean of its questions, which
    count nothing in the total; a prompt without such a question abstains from it, one without any question from all.
    The first aspect is the total and has the judge's name. A question that fails fails its row. template: names
    {sample}, {question}, {prompt} and {image}. Other settings: `Judge`.

    Departs from the paper: how an answer's probability is summed over tokens, see `LocalModel.says`.

    Raises:
        UsageError: another mean, or a kind given twice.
    """

    mean: Mean = "geometric"
    kinds: Sequence[str] = ()
    template: str = "{sample}{question} Answer in one word."
    name: str = "questions"
    fills = ("sample", "question", "prompt", "image")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean not in get_args(Mean):
            raise UsageError(f"judge {self.name!r} has no mean {self.mean!r}{nearest(str(self.mean), get_args(Mean))}")
        self.aspects = (self.name, *map(str, self.kinds))
        if (twice := first_repeated(self.aspects)) is not None:
            raise UsageError(
                f"kinds of judge {self.name!r} have {twice!r} twice; the first aspect has the judge's name"
            )
        self.weights = (1.0, *[0.0] * len(self.kinds))
        self.needs = frozenset({self.reads, f"facts.{FACT}"}) | needs_of(places(self.template))
        self.settings = (self.template, self.mean)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        columns: list[list[Answer]] = [[None] * len(prompts) for _ in self.aspects]
        table: list[tuple[int, Asked]] = []
        named = places(self.template)
        for row, prompt in enumerate(prompts):
            try:
                table += [(row, asked) for asked in questions_of(prompt) if brings(prompt, named)]
            except ScoringError as error:
                columns[0][row] = error
        questions = []
        for row, asked in table:
            values = {**known_of(prompts[row]), "sample": shown(media, row, self.reads), "question": asked.question}
            questions.append(self._question(self.template, values))
        answers = self.answerer.says(questions, [asked.answer for _, asked in table])
        for row in range(len(prompts)):
            own = [(asked, p) for (at, asked), p in zip(table, answers, strict=True) if at == row]
            if own:
                columns[0][row] = _mean([p for _, p in own], self.mean)
            for k, kind in enumerate(self.aspects[1:], start=1):
                of_kind = [p for asked, p in own if asked.kind == kind]
                columns[k][row] = _mean(of_kind, "arithmetic") if of_kind else None
        return self._scores(columns)


def questions_of(prompt: Prompt) -> list[Asked]:
    """The fact `questions` of a prompt; none where it has none.

    Raises:
        ScoringError: it is something else.
    """
    listed = prompt.facts.get(FACT) or []
    if not isinstance(listed, list):
        raise ScoringError(f"the fact {FACT!r} of a prompt is not a list; {SHAPE}")
    return [_asked(entry) for entry in listed]


def _asked(entry: Any) -> Asked:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("question"), str):
        raise ScoringError(f"a question of the fact {FACT!r} is {entry!r}; {SHAPE}")
    kind = entry.get("kind")
    return Asked(entry["question"], str(entry.get("answer") or "yes"), None if kind is None else str(kind))


def _mean(answers: Sequence[float | ScoringError], mean: Mean) -> Answer:
    """The mean of probabilities; the first failure among them."""
    failed = next((p for p in answers if isinstance(p, ScoringError)), None)
    if failed is not None:
        return failed
    values = torch.tensor(answers, dtype=torch.float64)
    return float(values.log().mean().exp() if mean == "geometric" else values.mean())
