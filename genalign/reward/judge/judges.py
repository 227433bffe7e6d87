"""Judges of one sample: p(yes) to a question, or a score in a range. Vision-language and language models alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genalign.reward.base import ScoringError
from genalign.reward.guard import in_batches
from genalign.reward.judge.asking import Question, known_of, of_prompt, shown
from genalign.reward.judge.base import Answer, CriteriaJudge, raised, seed_of
from genalign.reward.judge.local import LocalModel
from genalign.reward.judge.reading import read_marks
from genalign.reward.prefetch import Prefetch
from genalign.reward.tags import tagged
from genalign.reward.template import Piece, fill, places
from genalign.types import Media, Prompt, Scores, UsageError, nearest

YES_NO = "{sample}\n{question} Answer yes or no."
SCORE = (
    "{sample}\n{question}{principle} Think briefly, then end with one line `Score: N`, N a number from {low} (worst) "
    "to {high} (best)."
)


@dataclass(kw_only=True, eq=False, repr=False)
class YesNoJudge(CriteriaJudge):
    """score = p(yes | sample, question), in [0,1], from the probabilities of the next token.

    A model in this process that reads images passes gradients on to their pixels, where they ask for them.

    Settings: `CriteriaJudge` and `Judge`; template: names {sample}, {question}, {prompt} and {image}. tag: of a text,
    what stands between <tag> and </tag> is judged, as thoughts are no answer; without exactly one, p(yes) is 0.

    VQAScore (arXiv 2404.01291) with one question; OneReward's one model for all tasks and criteria (arXiv 2508.21066).

    Departs from the papers: OneReward's questions compare two pictures (see CompareJudge); here they are about one.
    """

    template: str = YES_NO
    tag: str | None = None
    name: str = "yes-no"
    fills = ("sample", "question", "prompt", "image")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tag is not None and self.reads != "text":
            raise UsageError(f"judge {self.name!r} reads {self.reads}, which has no tag {self.tag!r}; set reads: text")
        self.settings = (self.asks.tasks, self.template) + (() if self.tag is None else (self.tag,))

    @property
    def differentiable(self) -> bool:
        return isinstance(self.answerer, LocalModel) and self.reads == "image" and "sample" in places(self.template)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        """Where all samples are asked equally many questions, batches of questions begin at the same samples."""
        alike = self.tasks is None and self.tag is None and not of_prompt(self.asks.mentions | places(self.template))
        here = self.model is not None and alike
        return (in_batches(self, self.batch_size),) if here else ()

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        table = self._questions(prompts)
        graph = self.differentiable and torch.is_grad_enabled() and _has_graph(media[self.reads].held)
        columns: list[list[Answer]] = [[None] * len(prompts) for _ in self.aspects]
        if self.tag is not None:
            table = self._with_tag(table, media, columns)
        questions = []
        for row, _, text in table:
            questions.append(self._ask(prompts[row], self._judged(media, row, graph), text))
        if graph and questions:
            assert isinstance(self.answerer, LocalModel)
            answers_with_graph, errors = self.answerer.yes_with_grad(questions)
            return self._with_graph(table, answers_with_graph, errors, len(prompts))
        answers = self.answerer.yes(questions)
        for (row, k, _), answer in zip(table, answers, strict=True):
            columns[k][row] = answer
        return self._scores(columns)

    def _judged(self, media: Media, row: int, graph: bool) -> list[Piece]:
        if self.tag is None:
            return shown(media, row, self.reads, graph)
        return [tagged(str(media["text"].held[row]), self.tag) or ""]

    def _with_tag(
        self, table: Sequence[tuple[int, int, str]], media: Media, columns: list[list[Answer]]
    ) -> list[tuple[int, int, str]]:
        """The questions about texts that have the tag; the others are answered in `columns` by 0."""
        kept = []
        for row, k, text in table:
            if tagged(str(media["text"].held[row]), str(self.tag)) is None:
                columns[k][row] = 0.0
            else:
                kept.append((row, k, text))
        return kept

    def _with_graph(
        self, table: Sequence[tuple[int, int, str]], answers: Tensor, errors: Sequence[ScoringError | None], rows: int
    ) -> Scores:
        """answers (Q,), with gradients, and errors: of the questions of `table`."""
        columns: list[list[Answer]] = [[None] * rows for _ in self.aspects]
        for (row, k, _), error in zip(table, errors, strict=True):
            columns[k][row] = 0.0 if error is None else error
        plain = self._scores(columns)
        sound = [at for at, error in enumerate(errors) if error is None]
        place = (
            torch.tensor([table[at][0] for at in sound]).long(),
            torch.tensor([table[at][1] for at in sound]).long(),
        )
        values = answers.new_zeros(rows, len(self.aspects)).index_put(place, answers[sound])
        return self._total(values, plain.valid, plain.failed, None, plain.info)

    def _ask(self, prompt: Prompt, sample: list[Piece], text: str) -> Question:
        values = {**known_of(prompt), "sample": sample}
        return self._question(self.template, {**values, "question": fill(text, values)})


def _has_graph(held: Sequence[Any] | Tensor) -> bool:
    rows = [held] if isinstance(held, Tensor) else held
    return any(isinstance(row, Tensor) and row.requires_grad for row in rows)


@dataclass(kw_only=True, eq=False, repr=False)
class ScoreJudge(CriteriaJudge):
    """score = the number in [low, high] that the judge ends its answer with, averaged over `passes` sampled answers.

    principle: what the judge is to value, in words, put into every question (RewardAnything, arXiv 2506.03637); its
    place in the template is {principle}. passes: answers a question, each with a seed that depends on the question
    alone (EditScore's self-ensemble, arXiv 2509.23909); `std` is their spread, and more than half of them must be
    readable. temperature: None is 0 for one pass, else 0.7. minima: groups of criteria; the total of a pass is then the
    geometric mean of the groups' minima, averaged over passes last (EditScore: [[following, consistency],
    [naturalness, artefacts]]); criteria outside are for the log. Criteria with the very same question share one answer,
    which gives as many scores in their order (`read_marks`), as published judges write them; one that it calls N/A
    abstains. Other settings: `CriteriaJudge` and `Judge`.

    Departs from the papers: (1) the wording of the questions is our own. (2) An unreadable answer is a failure, where
    EditScore puts a middling or a random number. (3) Scores stay in their range; nothing is rescaled.
    """

    minima: Sequence[Sequence[str]] | None = None
    principle: str | None = None
    low: float = 0.0
    high: float = 10.0
    passes: int = 1
    temperature: float | None = None
    max_tokens: int = 256
    template: str = SCORE
    name: str = "score"
    fills = ("sample", "question", "prompt", "image", "principle", "low", "high")

    def __post_init__(self) -> None:
        if not self.low < self.high or self.passes < 1:
            given = f"{self.low:g}, {self.high:g}, {self.passes}"
            raise UsageError(f"judge {self.name!r} needs low < high and at least one pass, not {given}")
        super().__post_init__()
        self.low, self.high = float(self.low), float(self.high)
        self.heat = (0.7 if self.passes > 1 else 0.0) if self.temperature is None else float(self.temperature)
        self.lowest: list[list[int]] | None = None  # the columns of each group of `minima`
        if self.minima is not None:
            self.lowest = []
            for criteria in self.minima:
                self.lowest.append([_index(self.name, self.aspects, aspect) for aspect in criteria])
        if self.lowest is not None and self.low < 0:
            raise UsageError(
                f"judge {self.name!r} takes geometric means, so its scores must not be negative; raise low"
            )
        numbers = (self.low, self.high, self.passes, self.heat, self.max_tokens)
        self.settings = (self.asks.tasks, self.template, self.principle, self.lowest, numbers)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        asked: dict[tuple[int, str], list[int]] = {}  # (row, question) -> the columns that it is about
        for row, k, text in self._questions(prompts):
            asked.setdefault((row, text), []).append(k)
        table = [(row, columns, text, turn) for (row, text), columns in asked.items() for turn in range(self.passes)]
        samples = [shown(media, row, self.reads) for row in range(len(prompts))]
        questions, seeds = [], []
        for row, _, text, turn in table:
            questions.append(self._ask(prompts[row], samples[row], text))
            seeds.append(seed_of(prompts[row].text, text, turn))
        answers = self.answerer.write(questions, seeds, self.max_tokens, self.heat)
        read = torch.full((self.passes, len(self.aspects), len(prompts)), torch.nan)  # (P,K,B)
        says_none = torch.zeros_like(read, dtype=torch.bool)  # (P,K,B)
        applies = torch.zeros(read.shape[1:], dtype=torch.bool)  # (K,B)
        errors: dict[tuple[int, int], ScoringError] = {}
        for (row, columns, _, turn), answer in zip(table, answers, strict=True):
            applies[columns, row] = True
            try:
                marks = read_marks(raised(answer), len(columns), self.low, self.high)
            except ScoringError as error:
                errors |= {(k, row): error for k in columns}
                continue
            for k, mark in zip(columns, marks, strict=True):
                says_none[turn, k, row] = mark is None
                read[turn, k, row] = torch.nan if mark is None else mark
        applies &= 2 * says_none.sum(0) <= self.passes
        answered, std = self._average(read, applies, errors)
        scores = self._scores(answered, std, judge_text=_last_texts(table, answers, len(prompts)))
        return scores if self.lowest is None else self._geometric(scores, read)

    def _average(
        self, read: Tensor, applies: Tensor, errors: Mapping[tuple[int, int], ScoringError]
    ) -> tuple[list[list[Answer]], Tensor | None]:
        """K columns of B mean scores, and their std (B,K) over the passes; read (P,K,B) NaN where unreadable."""
        sound = read.isfinite()
        count = sound.sum(0)
        mean = torch.where(sound, read, 0.0).sum(0) / count.clamp(min=1)
        square = torch.where(sound, (read - mean) ** 2, 0.0).sum(0) / (count - 1).clamp(min=1)

        columns: list[list[Answer]] = [[None] * read.shape[2] for _ in self.aspects]
        for k, row in applies.nonzero().tolist():  # the mean stands if more than half of the passes could be read
            split = ScoringError("half of the judge's answers say N/A, and not the others")
            columns[k][row] = float(mean[k, row]) if 2 * count[k, row] > self.passes else errors.get((k, row), split)
        return columns, square.sqrt().T if self.passes > 1 else None

    def _geometric(self, scores: Scores, read: Tensor) -> Scores:
        """Reduce each pass, then average over the passes in which all that counts was read."""
        assert self.lowest is not None
        lowest = torch.stack([read[:, group].amin(1) for group in self.lowest])  # (G,P,B); a gap stays NaN
        per_pass = lowest.log().mean(0).exp()  # (P,B)
        counted = sorted(set[int]().union(*self.lowest))
        readable = scores.valid[:, counted].all(1) & per_pass.isfinite().any(0)
        return replace(scores, total=torch.where(readable, per_pass.nanmean(0), 0.0), total_valid=readable)

    def _ask(self, prompt: Prompt, sample: list[Piece], text: str) -> Question:
        values = {**known_of(prompt), "sample": sample}
        principle = f" Judge by this principle: {self.principle}" if self.principle else ""
        more = {"principle": principle, "low": f"{self.low:g}", "high": f"{self.high:g}"}
        return self._question(self.template, {**values, **more, "question": fill(text, values)})


def _index(name: str, aspects: Sequence[str], aspect: str) -> int:
    if aspect not in aspects:
        raise UsageError(f"judge {name!r} has no criterion {aspect!r}{nearest(str(aspect), aspects)}")
    return aspects.index(aspect)


def _last_texts(
    table: Sequence[tuple[int, Any, str, int]], answers: Sequence[str | ScoringError], rows: int
) -> list[str | None]:
    """The last answer about each row that is a text."""
    texts: list[str | None] = [None] * rows
    for (row, *_), answer in zip(table, answers, strict=True):
        texts[row] = answer if isinstance(answer, str) else texts[row]
    return texts
