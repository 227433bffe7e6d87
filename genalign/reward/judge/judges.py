"""Judges of one sample: p(yes) to a question, or a score in a range. Vision-language and language models alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from genalign.reward.base import Scope, ScoringError, Stateless, digest, nearest
from genalign.reward.judge.asking import (
    Answerer,
    Criteria,
    Piece,
    Question,
    Reads,
    check_places,
    facts_of,
    fill,
    places,
    read_score,
    shown,
)
from genalign.reward.judge.endpoint import Endpoint
from genalign.reward.judge.local import LocalModel
from genalign.reward.scores import combine
from genalign.types import Media, Prompt, Scores, UsageError

Answer = float | ScoringError | None  # None: not asked, abstains
YES_NO = "{sample}\n{question} Answer yes or no."
SCORE = (
    "{sample}\n{question}{principle} Think briefly, then end with one line `Score: N`, N a number from {low} (worst) "
    "to {high} (best)."
)


@dataclass(kw_only=True, eq=False, repr=False)
class Judge(Stateless):
    """What all judges share: who answers, what is judged, and failures that stay masks.

    model: a folder or hub id, asked in this process (see `LocalModel`); or endpoint: a mapping for `Endpoint` (url,
    model, key, ...). reads: what is judged: image, video (some frames) or text. system: what stands before each
    question. batch_size, device, dtype: of the model in this process. template: names what the judge `fills`.
    """

    model: str | Path | None = None
    endpoint: Mapping[str, Any] | None = None
    reads: Reads = "image"
    system: str | None = None
    batch_size: int = 8
    device: str | None = None
    dtype: str = "float32"
    template: str = ""
    name: str = "judge"

    looks_at: ClassVar[Scope] = "sample"
    fills: ClassVar[tuple[str, ...]] = ()
    settings: tuple[Any, ...] = field(init=False, default=())
    aspects: tuple[str, ...] = field(init=False, default=())
    weights: Any = field(init=False, default=())
    needs: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        check_places(self.name, self.template, self.fills)
        if (self.model is None) == (self.endpoint is None):
            raise UsageError(f"judge {self.name!r} needs either a model (in this process) or an endpoint")
        if self.reads not in get_args(Reads):
            raise UsageError(
                f"judge {self.name!r} cannot read {self.reads!r}{nearest(str(self.reads), get_args(Reads))}"
            )
        self.answerer: Answerer = (
            _endpoint(self.name, self.endpoint)
            if self.model is None
            else LocalModel(self.model, batch_size=self.batch_size, device=self.device, dtype=self.dtype)
        )

    @property
    def differentiable(self) -> bool:
        return False

    @property
    def version(self) -> str:
        told = (self.name, self.reads, self.system, self.aspects, self.weights, *self.settings)
        return digest(type(self).__name__, self.answerer.version, told)

    def _question(self, template: str, values: Mapping[str, Piece | Sequence[Piece]]) -> Question:
        return Question(fill(template, values), self.system)

    def _scores(self, columns: Sequence[Sequence[Answer]], std: Tensor | None = None, **info: list[Any]) -> Scores:
        """K columns of B answers as scores; a row's total is over the aspects it was asked, scaled to all weights."""
        values = torch.tensor([[x if isinstance(x, float) else 0.0 for x in row] for row in columns]).T
        valid = torch.tensor([[isinstance(x, float) for x in row] for row in columns], dtype=torch.bool).T
        failed = torch.tensor([[isinstance(x, ScoringError) for x in row] for row in columns], dtype=torch.bool).T
        if failed.any():
            rows = zip(*columns, strict=True)
            told = [dict.fromkeys(str(x) for x in row if isinstance(x, ScoringError)) for row in rows]
            info["error"] = ["; ".join(errors) or None for errors in told]
        return self._total(values, valid, failed, std, info)

    def _total(
        self, values: Tensor, valid: Tensor, failed: Tensor, std: Tensor | None, info: Mapping[str, list[Any]]
    ) -> Scores:
        weights = torch.tensor(self.weights)
        total, readable = combine(values, valid, failed, weights, None, "renormalise")
        return Scores(self.aspects, values, valid, failed, total, readable, weights, std=std, info=info)


def _endpoint(name: str, settings: Mapping[str, Any] | None) -> Endpoint:
    if not isinstance(settings, Mapping) or not {"url", "model"} <= set(settings):
        raise UsageError(f"the endpoint of judge {name!r} is a mapping with the keys url and model, not {settings!r}")
    return Endpoint(**settings)


def weights_of(name: str, aspects: Sequence[str], weights: Mapping[str, float] | None) -> tuple[float, ...]:
    unknown = next((key for key in weights or {} if key not in aspects), None)
    if unknown is not None:
        raise UsageError(f"judge {name!r} has no criterion {unknown!r}{nearest(unknown, aspects)}")
    return tuple(float((weights or {}).get(aspect, 1.0)) for aspect in aspects)


@dataclass(kw_only=True, eq=False, repr=False)
class CriteriaJudge(Judge):
    """A judge whose aspects are criteria: question, criteria or tasks as of `Criteria`, with {prompt} and {facts.KEY}.

    weights: what each criterion adds to the total (1 each).
    """

    question: str | None = None
    criteria: Mapping[str, str] | None = None
    tasks: Mapping[str, Mapping[str, str]] | None = None
    weights: Any = None  # a mapping as given; then a tuple, one an aspect

    def __post_init__(self) -> None:
        self.asks = Criteria(self.name, self.question, self.criteria, self.tasks)
        super().__post_init__()
        self.aspects = self.asks.aspects
        self.weights = weights_of(self.name, self.aspects, self.weights)
        self.needs = self.asks.needs | {self.reads} | _prompt_if(self.asks.mentions | places(self.template))


@dataclass(kw_only=True, eq=False, repr=False)
class YesNoJudge(CriteriaJudge):
    """score = p(yes | sample, question), in [0,1], from the probabilities of the next token.

    A model in this process that reads images passes gradients on to their pixels, where they ask for them.

    Settings: `CriteriaJudge` and `Judge`; template: names {sample}, {question} and {prompt}.

    VQAScore (arXiv 2404.01291) with one question; OneReward's one model for all tasks and criteria (arXiv 2508.21066).

    Departs from the papers: OneReward's questions compare two pictures (see CompareJudge); here they ask of one.
    """

    template: str = YES_NO
    name: str = "yes-no"
    fills = ("sample", "question", "prompt")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings = (self.asks.tasks, self.template)

    @property
    def differentiable(self) -> bool:
        return isinstance(self.answerer, LocalModel) and self.reads == "image" and "sample" in places(self.template)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        table = ask_criteria(self.asks, prompts)
        graph = self.differentiable and torch.is_grad_enabled() and _has_graph(media[self.reads].data)
        questions = [self._ask(prompts[row], shown(media, row, self.reads, graph), text) for row, _, text in table]
        if graph and questions:
            assert isinstance(self.answerer, LocalModel)
            return self._with_graph(table, self.answerer.yes_with_grad(questions), len(prompts))
        told = self.answerer.yes(questions)
        columns: list[list[Answer]] = [[None] * len(prompts) for _ in self.aspects]
        for (row, k, _), answer in zip(table, told, strict=True):
            columns[k][row] = answer
        return self._scores(columns)

    def _with_graph(self, table: Sequence[tuple[int, int, str]], told: Tensor, rows: int) -> Scores:
        """told (Q,): the answers to what `table` asks."""
        place = (torch.tensor([row for row, *_ in table]), torch.tensor([k for _, k, _ in table]))
        values = told.new_zeros(rows, len(self.aspects)).index_put(place, told)
        valid = torch.zeros_like(values, dtype=torch.bool).index_put(place, torch.tensor(True))
        return self._total(values, valid, torch.zeros_like(valid), None, {})

    def _ask(self, prompt: Prompt, sample: list[Piece], text: str) -> Question:
        values: dict[str, Piece | Sequence[Piece]] = {"prompt": prompt.text, **facts_of(prompt)}
        return self._question(self.template, {**values, "sample": sample, "question": fill(text, values)})


def _has_graph(data: Tensor | list[Tensor] | list[str]) -> bool:
    return any(isinstance(row, Tensor) and row.requires_grad for row in ([data] if isinstance(data, Tensor) else data))


def ask_criteria(criteria: Criteria, prompts: Sequence[Prompt]) -> list[tuple[int, int, str]]:
    """(row, column, question) of everything that is asked of a batch."""
    asked = [(row, criteria.of(prompt)) for row, prompt in enumerate(prompts)]
    return [(row, criteria.aspects.index(name), text) for row, told in asked for name, text in told.items()]


def _prompt_if(mentions: set[str]) -> set[str]:
    return {"prompt"} & mentions


@dataclass(kw_only=True, eq=False, repr=False)
class ScoreJudge(CriteriaJudge):
    """score = the number in [low, high] that the judge ends its answer with, averaged over `passes` sampled answers.

    principle: what the judge is to value, in words, put into every question (RewardAnything, arXiv 2506.03637); its
    place in the template is {principle}. passes: answers a question, each with a seed that hangs on the question alone
    (EditScore's self-ensemble, arXiv 2509.23909); `std` is their spread, and more than half of them must be readable.
    temperature: 0 for one pass, else 0.7 if unsaid. minima: groups of criteria; the total of a pass is then the
    geometric mean of the groups' minima, averaged over passes last (EditScore: [[following, consistency],
    [naturalness, artefacts]]); criteria outside are for the log. Other settings: `CriteriaJudge` and `Judge`.

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
    fills = ("sample", "question", "prompt", "principle", "low", "high")

    def __post_init__(self) -> None:
        if not self.low < self.high or self.passes < 1:
            told = f"{self.low:g}, {self.high:g}, {self.passes}"
            raise UsageError(f"judge {self.name!r} needs low < high and at least one pass, not {told}")
        super().__post_init__()
        self.low, self.high = float(self.low), float(self.high)
        self.heat = (0.7 if self.passes > 1 else 0.0) if self.temperature is None else float(self.temperature)
        groups = self.minima
        self.lowest = None if groups is None else [[_index(self.name, self.aspects, a) for a in g] for g in groups]
        if self.lowest is not None and self.low < 0:
            raise UsageError(
                f"judge {self.name!r} takes geometric means, so its scores must not be negative; raise low"
            )
        numbers = (self.low, self.high, self.passes, self.heat, self.max_tokens)
        self.settings = (self.asks.tasks, self.template, self.principle, self.lowest, numbers)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        table = [(*entry, k) for entry in ask_criteria(self.asks, prompts) for k in range(self.passes)]
        samples = [shown(media, row, self.reads) for row in range(len(prompts))]
        questions = [self._ask(prompts[row], samples[row], text) for row, _, text, _ in table]
        seeds = [seed_of(prompts[row].text, text, k) for row, _, text, k in table]
        told = self.answerer.write(questions, seeds, self.max_tokens, self.heat)
        read = torch.full((self.passes, len(self.aspects), len(prompts)), torch.nan)  # (P,K,B)
        asked, errors = torch.zeros(read.shape[1:], dtype=torch.bool), {}
        for (row, k, _, turn), answer in zip(table, told, strict=True):
            asked[k, row] = True
            try:
                read[turn, k, row] = read_score(_or_raise(answer), self.low, self.high)
            except ScoringError as error:
                errors[k, row] = error
        columns, std = self._average(read, asked, errors)
        scores = self._scores(columns, std, judge_text=_last_texts(table, told, len(prompts)))
        return scores if self.lowest is None else self._geometric(scores, read)

    def _average(
        self, read: Tensor, asked: Tensor, errors: Mapping[tuple[int, int], ScoringError]
    ) -> tuple[list[list[Answer]], Tensor | None]:
        sound = read.isfinite()
        count = sound.sum(0)
        mean = torch.where(sound, read, 0.0).sum(0) / count.clamp(min=1)
        square = torch.where(sound, (read - mean) ** 2, 0.0).sum(0) / (count - 1).clamp(min=1)

        def entry(k: int, row: int) -> Answer:
            if not asked[k, row]:
                return None
            return float(mean[k, row]) if 2 * count[k, row] > self.passes else errors[k, row]

        columns = [[entry(k, row) for row in range(read.shape[2])] for k in range(len(self.aspects))]
        return columns, square.sqrt().T if self.passes > 1 else None

    def _geometric(self, scores: Scores, read: Tensor) -> Scores:
        """Reduce each pass, then average over the passes in which all that counts was read."""
        assert self.lowest is not None
        lowest = torch.stack([read[:, group].amin(1) for group in self.lowest])  # (G,P,B); a gap stays NaN
        per_pass = lowest.log().mean(0).exp()  # (P,B)
        counted = sorted({k for group in self.lowest for k in group})
        readable = scores.valid[:, counted].all(1) & per_pass.isfinite().any(0)
        return replace(scores, total=torch.where(readable, per_pass.nanmean(0), 0.0), total_valid=readable)

    def _ask(self, prompt: Prompt, sample: list[Piece], text: str) -> Question:
        values: dict[str, Piece | Sequence[Piece]] = {"prompt": prompt.text, **facts_of(prompt)}
        principle = f" Judge by this principle: {self.principle}" if self.principle else ""
        more = {"principle": principle, "low": f"{self.low:g}", "high": f"{self.high:g}"}
        return self._question(self.template, {**values, **more, "sample": sample, "question": fill(text, values)})


def _index(name: str, aspects: Sequence[str], aspect: str) -> int:
    if aspect not in aspects:
        raise UsageError(f"judge {name!r} has no criterion {aspect!r}{nearest(str(aspect), aspects)}")
    return aspects.index(aspect)


def _or_raise(answer: str | ScoringError) -> str:
    if isinstance(answer, ScoringError):
        raise answer
    return answer


def seed_of(*parts: Any) -> int:
    """A seed (31 bits) that the same question always gets."""
    return int(digest("judge", *parts)[:8], 16) >> 1


def _last_texts(table: Sequence[tuple[int, int, str, int]], told: Sequence[str | ScoringError], rows: int) -> list[Any]:
    texts: list[Any] = [None] * rows
    for (row, *_), answer in zip(table, told, strict=True):
        texts[row] = answer if isinstance(answer, str) else texts[row]
    return texts
