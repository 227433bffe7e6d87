"""Plain functions as rewards: parameter names pick what they read; what they return is scores, abstentions, failures.

A function is called once a batch of B rows. Its parameters, by name:
    prompt, prompts             list of B strings
    image, images, video, ...   what the policy made, as in `Media`: a float tensor (B,3,H,W) in [0,1] (video
                                (B,F,3,H,W), audio (B,C,N) in [-1,1]), or a list of B tensors where shapes differ
    text, completions           list of B strings
    completion_ids              list of B lists of tokens, where a language model made the texts
    trainer_state               an object with `global_step`, the updates made so far
    log_extra, log_metric       log_extra(name, B values) puts a column beside the scores, log_metric(name, number) a
                                number into the training log
    facts, metadata             list of B mappings
    media, group                the whole `Media`; list of B ints, equal for siblings
    anything else               that key of each prompt's facts, a list of B (None where a row lacks it)
    **columns                   everything above that is not named, as TRL passes it
A parameter with a default is optional, and may be set where the reward is used. TRL's `f(prompts, completions,
**columns)` and flow_grpo's `f(images, prompts, metadata) -> (scores, info)` fit as they are; an async function is
waited for. As in TRL, `prompts` and `completions` are lists of messages where the prompts are conversations (the fact
`messages`); also where their annotation is of lists of lists, and where the function indexes a text as a message.

It returns B scores: a list whose entries are a number, None (abstains) or a pair (score, confidence in [0,1]); or a
tensor or array (B,); or a *tuple* of two such columns (scores, confidences); or a mapping aspect -> any of these; or
(any of these, mapping of info). NaN, inf, and a confidence outside [0,1] are failures of their row.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from genalign.reward.base import Scope, ScoringError, StepCounting, digest, texts
from genalign.reward.calling import annotated_chats, as_messages, awaited, of_trainer
from genalign.reward.identity import held_values, source
from genalign.reward.returned import describe, read_column
from genalign.reward.scores import all_failed, cat_scores, combine
from genalign.types import MODALITIES, Media, Prompt, Scores, UsageError, nearest

ALIASES = {
    "prompts": "prompt",
    "metadata": "facts",
    **{f"{name}s": name for name in MODALITIES},
    "completion": "text",
    "completions": "text",
}
CHATS = ("prompts", "completions")  # what TRL gives as lists of messages where prompts are conversations
EVERY_BATCH = ("facts", "media", "group", "trainer_state", "log_extra", "log_metric")


class FunctionReward(StepCounting):
    """A function as a reward; see the module for what it may read and return.

    name: None takes the function's. needs: what it reads beyond its parameter names. aspects: the keys of the mapping
    it returns, or a mapping aspect -> weight (0: kept for the log only); None: one aspect, called like the reward.
    looks_at: None decides by the parameter `group`. settings: values of parameters that have a default.

    A call that raises is repeated row by row, so that only the rows at fault are masked (not if siblings matter).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        needs: Sequence[str] = (),
        aspects: Sequence[str] | Mapping[str, float] | None = None,
        looks_at: Scope | None = None,
        differentiable: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.function = function
        called = function.func if isinstance(function, functools.partial) else function
        self.name = name or str(getattr(called, "__name__", type(called).__name__))
        weighted = aspects if isinstance(aspects, Mapping) else dict.fromkeys(aspects or (self.name,), 1.0)
        self.aspects, self.weights = tuple(weighted), tuple(float(weight) for weight in weighted.values())
        self.single = aspects is None
        self.settings = dict(settings or {})
        self._held = held_values(function)  # as they are now: some count what they are called with
        self.extra_needs = tuple(needs)
        parameters = inspect.signature(function).parameters.values()
        self.chats = annotated_chats([p.annotation for p in parameters if p.name in CHATS])
        self.steps, self.step = any(p.name == "trainer_state" for p in parameters), 0
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named, self.optional = [], set[str]()
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                named.append(p.name)
                if p.default is not p.empty:
                    self.optional.add(p.name)
        self.parameters = tuple(named)
        unknown = sorted(set(self.settings) - self.optional)
        if unknown:
            raise UsageError(f"reward {self.name!r} has no setting {unknown[0]!r}{nearest(unknown[0], self.optional)}")
        required = {_need(parameter) for parameter in self.parameters if parameter not in self.optional}
        self.needs = frozenset(need for need in {*needs, *required} if need is not None)
        summed = sum(weight != 0 for weight in self.weights)
        self.looks_at: Scope = looks_at or ("group" if "group" in self.parameters or summed > 1 else "sample")
        self.differentiable = differentiable

    def with_settings(self, settings: Mapping[str, Any], name: str | None = None) -> FunctionReward:
        """The same function with other values of its optional parameters."""
        weighted = dict(zip(self.aspects, self.weights, strict=True))
        return FunctionReward(
            self.function,
            name=name or self.name,
            needs=self.extra_needs,
            aspects=None if self.single else weighted,
            looks_at=self.looks_at,
            differentiable=self.differentiable,
            settings={**self.settings, **settings},
        )

    @property
    def version(self) -> str:
        more = [self._held] if self._held else []
        return digest(self.name, source(self.function), self.settings, self.aspects, self.weights, *more)

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            chats = any("messages" in prompt.facts for prompt in prompts) if self.chats is None else self.chats
            try:
                result, logged = self._call(prompts, media, group, chats)
            except Exception as error:  # of whatever kind: it is user code
                indexes = isinstance(error, TypeError) and str(error).startswith("string indices must be integers")
                if indexes and self.chats is None and not chats:
                    self.chats = True  # it reads messages, of whatever prompt
                    return self(prompts, media, group)
                if self.looks_at != "sample" or len(prompts) < 2:
                    raise
            else:
                return self._read(result, len(prompts), group, logged)
            return self._row_by_row(prompts, media, group, chats)

    def answers(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> list[str | None]:
        """What the function returns as an environment: a text or None for each row.

        Raises:
            ScoringError: anything else.
        """
        found = list(self._call(prompts, media, group, False)[0])
        if len(found) != len(prompts) or not all(isinstance(one, str | None) for one in found):
            raise ScoringError(f"{self.name} returned {found!r} for {len(prompts)} rows; return a text or None each")
        return found

    def _call(
        self, prompts: Sequence[Prompt], media: Media, group: Tensor | None, chats: bool
    ) -> tuple[Any, dict[str, list[Any]]]:
        """What the function returns, and the columns that it logs."""
        logged: dict[str, list[Any]] = {}
        result = self.function(**self._arguments(prompts, media, group, chats, logged))
        return awaited(result) if inspect.isawaitable(result) else result, logged

    def _arguments(
        self,
        prompts: Sequence[Prompt],
        media: Media,
        group: Tensor | None,
        chats: bool,
        logged: dict[str, list[Any]],
    ) -> dict[str, Any]:
        """What the function is called with; `logged` takes what it logs."""
        facts = [prompt.facts for prompt in prompts]
        offered: dict[str, Any] = {}
        for row in facts:
            for key in row:
                if key not in offered:
                    offered[key] = [other.get(key) for other in facts]
        # The modalities and the words below take precedence over facts of the same name.
        # Levels become floats where they are read: a copy of four times the bytes.
        read = {"text", *(ALIASES.get(name, name) for name in self.parameters)}
        offered |= {name: track.data for name, track in media.items() if self.takes_all or name in read}
        offered |= {"prompt": texts(prompts), "facts": [dict(row) for row in facts], "media": media}
        offered["group"] = list(range(len(prompts))) if group is None else group.tolist()
        offered |= of_trainer(self.step, len(prompts), logged)
        plural = {"prompts": offered["prompt"], **({"completions": offered["text"]} if "text" in media else {})}
        if chats:
            plural = as_messages(prompts, plural.get("completions"))
        if "text" in media and media["text"].ids is not None:
            offered["completion_ids"] = [list(ids) for ids in media["text"].ids]
        elif "completion_ids" in self.parameters and "completion_ids" not in self.optional:
            raise ScoringError("reads completion_ids, which only texts that a language model of the run made have")
        chosen: dict[str, Any] = {}
        for name in self.parameters:
            source = ALIASES.get(name, name)
            if name in plural and name not in self.settings:
                chosen[name] = plural[name]
            elif source in offered and name not in self.settings:
                chosen[name] = offered[source]
            elif name not in self.optional:  # a fact that no row has
                chosen[name] = [None] * len(prompts)
        if self.takes_all:  # **columns, by TRL's plural names; what is named above stands as it is
            hidden = ("media", "facts", "prompt", "text", "trainer_state")  # the last: where it is named alone
            rest = {**plural, **{key: value for key, value in offered.items() if key not in hidden}}
            chosen = {**rest, **chosen}
        return {**chosen, **self.settings}

    def _row_by_row(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None, chats: bool) -> Scores:
        rows = []
        for i, prompt in enumerate(prompts):
            try:
                siblings = None if group is None else group[i : i + 1]
                result, logged = self._call([prompt], media.select([i]), siblings, chats)
                rows.append(self._read(result, 1, None, logged))
            except Exception as error:
                rows.append(all_failed(self, 1, describe(error)))
        return cat_scores(rows)

    def _read(
        self, result: Any, rows: int, group: Tensor | None, logged: Mapping[str, list[Any]] | None = None
    ) -> Scores:
        info: Mapping[str, Any] = {}
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping):
            result, info = result
        if not isinstance(result, Mapping):
            result = {self.aspects[0]: result} if self.single else {}
        if set(result) != set(self.aspects):
            raise ScoringError(f"returned the aspects {sorted(result)}, but is declared with {sorted(self.aspects)}")
        columns = [read_column(result[aspect], rows) for aspect in self.aspects]
        values, valid, failed, confidence = (torch.stack(part, 1) for part in zip(*columns, strict=True))
        weights = torch.tensor(self.weights)
        total, total_valid = combine(values, valid, failed, weights, group, "zero_advantage")
        kept = dict(logged or {})
        kept |= {key: list(value) for key, value in info.items() if isinstance(value, list) and len(value) == rows}
        if failed.any():
            kept["error"] = ["returned a number that is not finite" if row else None for row in failed.any(1)]
        return Scores(self.aspects, values, valid, failed, total, total_valid, weights, confidence, info=kept)


@overload
def reward(function: Callable[..., Any]) -> FunctionReward: ...


@overload
def reward(
    *,
    name: str | None = None,
    needs: Sequence[str] = (),
    aspects: Sequence[str] | Mapping[str, float] | None = None,
    looks_at: Scope | None = None,
    differentiable: bool = False,
) -> Callable[[Callable[..., Any]], FunctionReward]: ...


def reward(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Make a function a reward: `@reward`, or `@reward(needs=..., aspects=...)` as `FunctionReward` takes them."""
    if function is not None:
        return FunctionReward(function)
    return lambda later: FunctionReward(later, **options)


def _need(parameter: str) -> str | None:
    """What a parameter reads, as in `Reward.needs`; None of what every batch has."""
    name = ALIASES.get(parameter, parameter)
    if name in EVERY_BATCH:
        return None
    if name == "completion_ids":
        return "text"
    return name if name == "prompt" or name in MODALITIES else f"facts.{name}"
