"""Judges of several samples at once: against a reference in both orders, or siblings in one list of shuffled keys."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genalign.files.text import parse_row, read_lines
from genalign.files.untrusted import neighbour
from genalign.media.image import load_png
from genalign.reward.base import ScoringError
from genalign.reward.judge.asking import Question, brings, known_of, needs_of, shown
from genalign.reward.judge.base import Answer, CriteriaJudge, Judge, raised, seed_of
from genalign.reward.judge.reading import read_scores
from genalign.reward.template import Piece, fill, places
from genalign.types import Media, Prompt, Scores, UsageError

COMPARE = (
    "One:\n{first}\nTwo:\n{second}\nBoth were made for: {prompt}\n{question} Is One better than Two? Answer yes or no."
)
RANK = (
    "{samples}\nAll of these were made for: {prompt}\nJudge each by this principle: {principle}\n"
    "Think briefly, then end with one JSON object "
    '{"scores": {KEY: number}} that gives each of {keys} a number from {low} (worst) to {high} (best).'
)
BETTER = "Which of the two fits the text better?"


@dataclass(kw_only=True, eq=False, repr=False)
class CompareJudge(CriteriaJudge):
    """score = p(the sample is better than the reference), in [0,1]; 1/2 means level.

    reference: "prompt" (the prompt's own picture), or "facts.KEY" (a text, for reads: text). references: a folder that
    `genalign sample MODEL --prompts FILE --out FOLDER` wrote: each prompt's first file there. A row without a reference
    abstains.
    both_orders: p = (p(yes | sample, reference) + 1 - p(yes | reference, sample)) / 2, so that p(a,b) + p(b,a) = 1.
    template: names {first}, {second}, {question}, {prompt}, {image}. Other settings: `CriteriaJudge` and `Judge`.

    Scores.info has, a row: position_bias, the mean over criteria of p(yes | sample, reference) + p(yes | reference,
    sample) - 1 (0: none; above 0: it favours what is shown first), and order_flips, whether the two orders disagree.

    RewardDance (arXiv 2509.08826): p(yes) of a comparison with a reference. OneReward (arXiv 2508.21066): one model for
    all (task, criterion) queries.

    Departs from the papers: both orders are used, and the wording is our own. Without gradients.
    """

    reference: str | None = None
    references: str | Path | None = None
    both_orders: bool = True
    template: str = COMPARE
    name: str = "compare"
    fills = ("first", "second", "question", "prompt", "image")

    def __post_init__(self) -> None:
        if self.question is None and self.criteria is None and self.tasks is None:
            self.question = BETTER
        super().__post_init__()
        self._check_reference()
        self.files = {} if self.references is None else drawn_files(Path(self.references))
        self.needs |= {"prompt"} if self.files else set()
        self.needs |= {self.reference} if self.reference and self.reference.startswith("facts.") else set()
        seen = sorted((prompt, hashlib.sha256(file.read_bytes()).hexdigest()) for prompt, file in self.files.items())
        self.settings = (self.asks.tasks, self.template, self.both_orders, self.reference, seen)

    def _check_reference(self) -> None:
        name, fact = self.name, str(self.reference).startswith("facts.")
        if (self.reference is None) == (self.references is None):
            raise UsageError(
                f"judge {name!r} needs either reference ('prompt' or 'facts.KEY') or references (a folder)"
            )
        if self.reference is not None and self.reference != "prompt" and not fact:
            raise UsageError(f"the reference of judge {name!r} is {self.reference!r}; write prompt or facts.KEY")
        if (self.references is not None and self.reads != "image") or (fact and self.reads != "text"):
            raise UsageError(f"judge {name!r} reads {self.reads}: a folder holds pictures, and a fact is a text")

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        samples = [shown(media, row, self.reads) for row in range(len(prompts))]
        references = [self._reference(prompt) for prompt in prompts]
        table = [entry for entry in self._questions(prompts) if references[entry[0]] is not None]
        orders = (False, True) if self.both_orders else (False,)
        questions = []  # for each entry of the table, one an order
        for row, _, text in table:
            for swap in orders:
                questions.append(self._ask(prompts[row], text, samples[row], references[row] or [], swap))
        answers = self.answerer.yes(questions)
        columns: list[list[Answer]] = [[None] * len(prompts) for _ in self.aspects]
        bias: list[list[float]] = [[] for _ in prompts]
        flips: list[list[bool]] = [[] for _ in prompts]
        for at, (row, k, _) in enumerate(table):
            pair = answers[at * len(orders) : (at + 1) * len(orders)]
            wrong = next((answer for answer in pair if isinstance(answer, ScoringError)), None)
            if wrong is not None:
                columns[k][row] = wrong
                continue
            p = [float(answer) for answer in pair]  # type: ignore[arg-type]
            # p[0]: yes, the sample is better; p[1]: yes, the reference is. In agreement the two sum to 1.
            columns[k][row] = (p[0] + 1 - p[-1]) / 2 if self.both_orders else p[0]
            if self.both_orders:
                bias[row].append(p[0] + p[1] - 1)
                flips[row].append((p[0] > 0.5) != (p[1] < 0.5))
        if not self.both_orders:
            return self._scores(columns)
        return self._scores(
            columns,
            position_bias=[sum(row) / len(row) if row else None for row in bias],
            order_flips=[any(row) if row else None for row in flips],
        )

    def _reference(self, prompt: Prompt) -> list[Piece] | None:
        """What a row is compared with; None where it has nothing."""
        if self.reference is None:
            file = self.files.get(prompt.text)
            return None if file is None else [load_png(file)]
        if self.reference == "prompt":
            held = prompt.media is not None and self.reads in prompt.media
            return shown(prompt.media, 0, self.reads) if held else None  # type: ignore[arg-type]
        text = prompt.facts.get(self.reference.removeprefix("facts."))
        return None if text is None else [str(text)]

    def _ask(self, prompt: Prompt, text: str, sample: list[Piece], other: list[Piece], swap: bool) -> Question:
        values = known_of(prompt)
        first, second = (other, sample) if swap else (sample, other)
        return self._question(
            self.template, {**values, "first": first, "second": second, "question": fill(text, values)}
        )


def drawn_files(folder: Path) -> dict[str, Path]:
    """prompt -> its first file, of a folder that `genalign sample` wrote.

    Raises:
        UsageError: no samples.jsonl there, or one that is not of that form.
    """
    index = folder / "samples.jsonl"
    if not index.is_file():
        raise UsageError(f"{folder} holds no samples to compare with (no {index.name}); write it by genalign sample")
    try:
        rows = [parse_row(line, index, "write it by genalign sample") for line in read_lines(index)]
        files = {row["prompt"]: neighbour(folder, row["file"], str(index)) for row in reversed(rows)}
        missing = next((file for file in files.values() if not file.is_file()), None)
        if missing is not None:
            raise OSError(f"{missing.name} is missing")
        return files
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} holds no samples to compare with ({error}); write it by genalign sample") from error


@dataclass(kw_only=True, eq=False, repr=False)
class RankJudge(Judge):
    """score = the number in [low, high] that the judge gives a sample when it reads all its siblings in one list.

    principle: what is to be valued, in words; it may change without training (RewardAnything, arXiv 2506.03637). Each
    pass shows the siblings in another order under the keys A, B, ..., so that a key carries no meaning; scores are
    averaged over `passes` (more than half must be readable), and `std` is their spread. template: names {samples},
    {principle}, {prompt}, {keys}, {low}, {high}. temperature: 0 takes the likeliest answer; the order still changes.

    Scores.info has, a row: position_bias, the group's mean score when shown in the first half of the list minus that in
    the second half (0: none), and judge_text, the last answer.

    Departs from the paper: the wording is our own, and scores are not forced to a ranking.
    """

    principle: str
    low: float = 1.0
    high: float = 5.0
    passes: int = 1
    temperature: float = 0.0
    max_tokens: int = 512
    template: str = RANK
    name: str = "rank"
    looks_at = "group"
    fills = ("samples", "principle", "prompt", "keys", "low", "high")

    def __post_init__(self) -> None:
        if not self.low < self.high or self.passes < 1 or not str(self.principle).strip():
            raise UsageError(f"judge {self.name!r} needs a principle in words, low < high, and at least one pass")
        super().__post_init__()
        self.aspects, self.weights, self.principle = (self.name,), (1.0,), str(self.principle)
        self.low, self.high, self.temperature = float(self.low), float(self.high), float(self.temperature)
        self.needs = frozenset({self.reads}) | needs_of(places(self.template))
        numbers = (self.low, self.high, self.passes, self.temperature, self.max_tokens)
        self.settings = (self.principle, self.template, *numbers)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        siblings: dict[int, list[int]] = {}
        for row in range(len(prompts)):
            siblings.setdefault(row if group is None else int(group[row]), []).append(row)
        samples = [shown(media, row, self.reads) for row in range(len(prompts))]
        seeds: list[int] = []
        orders: list[list[int]] = []  # one a pass of each group: its rows, shuffled
        named = places(self.template)
        for rows in siblings.values():
            for turn in range(self.passes if brings(prompts[rows[0]], named) else 0):
                seeds.append(seed_of(prompts[rows[0]].text, self.principle, turn))
                orders.append(random.Random(seeds[-1]).sample(rows, len(rows)))
        questions = []
        for order in orders:
            questions.append(self._ask(prompts[order[0]], [samples[row] for row in order]))
        answers = self.answerer.write(questions, seeds, self.max_tokens, self.temperature)
        read: list[list[float]] = [[] for _ in prompts]
        halves: list[tuple[list[float], list[float]]] = [([], []) for _ in prompts]  # by row: its group's, by place
        errors: dict[int, ScoringError] = {}
        texts: list[str | None] = [None] * len(prompts)
        for order, answer in zip(orders, answers, strict=True):
            try:
                numbers = read_scores(raised(answer), _keys(len(order)), self.low, self.high)
            except ScoringError as error:
                errors.update(dict.fromkeys(order, error))
                continue
            for place, (row, number) in enumerate(zip(order, numbers, strict=True)):
                read[row].append(number)
                halves[min(order)][2 * place >= len(order)].append(number)
                texts[row] = str(answer)
        first: dict[int, int] = {}  # the first row of each row's group, where `halves` has what belongs to all of it
        for rows in siblings.values():
            first |= dict.fromkeys(rows, min(rows))
        column: list[Answer] = []
        spread: list[float] = []
        bias: list[float | None] = []
        for row, numbers in enumerate(read):
            readable = 2 * len(numbers) > self.passes  # more than half of the passes
            column.append(sum(numbers) / len(numbers) if readable else errors.get(row))
            spread.append(torch.tensor(numbers).std().item() if len(numbers) > 1 else 0.0)
            bias.append(_difference(*halves[first[row]]))
        std = torch.tensor(spread)[:, None] if self.passes > 1 else None
        return self._scores([column], std, position_bias=bias, judge_text=texts)

    def _ask(self, prompt: Prompt, samples: Sequence[list[Piece]]) -> Question:
        keys = _keys(len(samples))
        listed: list[Piece] = []
        for key, sample in zip(keys, samples, strict=True):
            listed += [f"[{key}]:\n", *sample, "\n"]
        more = {"low": f"{self.low:g}", "high": f"{self.high:g}", "keys": ", ".join(keys)}
        values = {**known_of(prompt), "principle": self.principle, "samples": listed, **more}
        return self._question(self.template, values)


def _keys(count: int) -> list[str]:
    """A, B, ... for up to 26 samples, else S1, S2, ..."""
    letters = string.ascii_uppercase
    return [letters[k] if count <= len(letters) else f"S{k + 1}" for k in range(count)]


def _difference(early: Sequence[float], late: Sequence[float]) -> float | None:
    """Of the means; None where one of them has nothing."""
    return sum(early) / len(early) - sum(late) / len(late) if early and late else None
