"""What all judges share: who answers, which criteria are asked about, and failures that stay masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from genalign.reward.base import Scope, ScoringError, Stateless, digest, first_missing
from genalign.reward.judge.asking import Answerer, Criteria, Question, Reads, brings, needs_of
from genalign.reward.judge.endpoint import Endpoint
from genalign.reward.judge.local import LocalModel
from genalign.reward.scores import combine
from genalign.reward.template import FACT, Piece, check_template, fill, places
from genalign.types import Prompt, Scores, UsageError, nearest

Answer = float | ScoringError | None  # None: there was no question, so the aspect abstains


@dataclass(kw_only=True, eq=False, repr=False)
class Judge(Stateless):
    """A reward whose scores are answers of a model.

    model: a folder or hub id, run in this process (see `LocalModel`); or endpoint: a mapping for `Endpoint` (url,
    model, key, ...). reads: what is judged: image, video (some frames) or text. system: what stands before each
    question. batch_size, device, dtype: of the model in this process. chat_template_kwargs: what the model's chat
    template reads besides the turns, such as {enable_thinking: false}; here and behind an endpoint. template: names
    what the judge `fills`, and {facts.KEY}; a row whose prompt lacks a picture or a fact that it names abstains.

    Raises:
        UsageError: neither or both of model and endpoint, or a template with a name that nothing fills.
    """

    model: str | Path | None = None
    endpoint: Mapping[str, Any] | None = None
    reads: Reads = "image"
    system: str | None = None
    batch_size: int = 8
    device: str | None = None
    dtype: str = "float32"
    chat_template_kwargs: Mapping[str, Any] | None = None
    template: str = ""
    name: str = "judge"

    looks_at: ClassVar[Scope] = "sample"
    fills: ClassVar[tuple[str, ...]] = ()
    settings: tuple[Any, ...] = field(init=False, default=())
    aspects: tuple[str, ...] = field(init=False, default=())
    weights: Any = field(init=False, default=())
    needs: frozenset[str] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        check_template(self.template, (*self.fills, FACT), f"judge {self.name!r}")
        if (self.model is None) == (self.endpoint is None):
            raise UsageError(f"judge {self.name!r} needs either a model (in this process) or an endpoint")
        if self.reads not in get_args(Reads):
            raise UsageError(
                f"judge {self.name!r} cannot read {self.reads!r}{nearest(str(self.reads), get_args(Reads))}"
            )
        given = self.chat_template_kwargs
        if given is not None and (not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given)):
            raise UsageError(f"chat_template_kwargs of judge {self.name!r} is a mapping from names, not {given!r}")
        if self.model is None:
            self.answerer: Answerer = _endpoint(self.name, self.endpoint, given)
        else:
            own = {"batch_size": self.batch_size, "device": self.device, "dtype": self.dtype}
            self.answerer = LocalModel(self.model, chat_template_kwargs=given, **own)  # type: ignore[arg-type]

    @property
    def differentiable(self) -> bool:
        return False

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return self.endpoint is not None

    @property
    def version(self) -> str:
        settings = (self.name, self.reads, self.system, self.aspects, self.weights, *self.settings)
        return digest(type(self).__name__, self.answerer.version, settings)

    def _question(self, template: str, values: Mapping[str, Piece | Sequence[Piece]]) -> Question:
        return Question(fill(template, values), self.system)

    def _scores(self, columns: Sequence[Sequence[Answer]], std: Tensor | None = None, **info: list[Any]) -> Scores:
        """K columns of B answers as scores; a row's total is over the aspects it has, scaled to all weights."""
        values = torch.zeros(len(columns[0]), len(columns))  # (B,K)
        valid, failed = torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values, dtype=torch.bool)
        errors: list[dict[str, None]] = [{} for _ in columns[0]]  # a row's messages, each once, in their order
        for k, column in enumerate(columns):
            for row, answer in enumerate(column):
                if isinstance(answer, float):
                    values[row, k], valid[row, k] = answer, True
                elif isinstance(answer, ScoringError):
                    failed[row, k] = True
                    errors[row][str(answer)] = None
        if failed.any():
            info["error"] = ["; ".join(messages) or None for messages in errors]
        return self._total(values, valid, failed, std, info)

    def _total(
        self, values: Tensor, valid: Tensor, failed: Tensor, std: Tensor | None, info: Mapping[str, list[Any]]
    ) -> Scores:
        weights = torch.tensor(self.weights)
        total, readable = combine(values, valid, failed, weights, None, "renormalise")
        return Scores(self.aspects, values, valid, failed, total, readable, weights, std=std, info=info)


def _endpoint(name: str, settings: Mapping[str, Any] | None, kwargs: Mapping[str, Any] | None) -> Endpoint:
    if not isinstance(settings, Mapping) or not {"url", "model"} <= set(settings):
        raise UsageError(f"the endpoint of judge {name!r} is a mapping with the keys url and model, not {settings!r}")
    body = settings.get("body")
    if kwargs and (body is None or isinstance(body, Mapping)):
        inner = {**kwargs, **((body or {}).get("chat_template_kwargs") or {})}
        settings = {**settings, "body": {**(body or {}), "chat_template_kwargs": inner}}
    return Endpoint(**settings)


def weights_of(name: str, aspects: Sequence[str], weights: Mapping[str, float] | None) -> tuple[float, ...]:
    """(K,) one weight an aspect, 1 where none is given.

    Raises:
        UsageError: a weight of something that is not a criterion.
    """
    unknown = first_missing(weights or {}, aspects)
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
        self.asks = Criteria(self.name, self.fills, self.question, self.criteria, self.tasks)
        super().__post_init__()
        self.aspects = self.asks.aspects
        self.weights = weights_of(self.name, self.aspects, self.weights)
        self.needs = self.asks.needs | {self.reads} | needs_of(places(self.template))

    def _questions(self, prompts: Sequence[Prompt]) -> list[tuple[int, int, str]]:
        """(row, column, question) of every question about a batch."""
        named, questions = places(self.template), []
        for row, prompt in enumerate(prompts):
            for aspect, text in self.asks.of(prompt).items() if brings(prompt, named) else ():
                questions.append((row, self.aspects.index(aspect), text))
        return questions


def raised(answer: str | ScoringError) -> str:
    """The answer; what went wrong with it is raised."""
    if isinstance(answer, ScoringError):
        raise answer
    return answer


def seed_of(*parts: Any) -> int:
    """A seed (31 bits) that the same question always gets."""
    return int(digest("judge", *parts)[:8], 16) >> 1
