"""A judge behind any OpenAI-compatible endpoint: questions out as chat completions, probabilities and texts back."""

from __future__ import annotations

import base64
import inspect
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from genalign.media.image import to_pil
from genalign.reward.base import ScoringError, digest
from genalign.reward.judge.asking import Question, bare_word, p_says, p_yes, spellings, yes_or_no
from genalign.reward.judge.reading import without_thoughts
from genalign.reward.runtime.web import Web, server_message
from genalign.types import UsageError

TOP = 20  # the most that OpenAI's own endpoint gives
OURS = ("model", "messages", "stream", "n")  # of a request: what no setting may change
UNSET: Any = object()  # where None is a value: to leave the field out
Answer = TypeVar("Answer")


class Endpoint:
    """POST url/chat/completions, `at_once` requests at a time.

    model: its name there. url, key, timeout, retries, pause, longest_wait: as `Web` takes them; url ends in /v1 as a
    rule, and key names an environment variable. logprobs: False where the endpoint gives none: p(yes) is then 1 or 0 by
    what it writes. Pictures cross as PNG (8 bits a channel, lossless), inside the request.

    max_tokens, temperature: in place of the judge's; None leaves the field out. max_completion_tokens: sent in place of
    max_tokens, which newer models of OpenAI refuse. top_logprobs: alternatives asked for; some servers allow 5. body:
    fields of the request, merged in last (None drops one): reasoning_effort, chat_template_kwargs, seed ...

    A refused request, an answer that is not a chat completion, and one that was cut off are failures of their question.

    Raises:
        UsageError: an unknown setting (the nearest is named), or one that does not fit.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        at_once: int = 8,
        logprobs: bool = True,
        max_tokens: int | None = UNSET,
        max_completion_tokens: int | None = None,
        temperature: float | None = UNSET,
        top_logprobs: int = TOP,
        body: Mapping[str, Any] | None = None,
        **web: Any,
    ) -> None:
        beside = [name for name in inspect.signature(Endpoint).parameters if name != "web"]
        Web.check_settings("an endpoint", web, beside=beside)
        counts = {"at_once": at_once, "top_logprobs": top_logprobs}
        counts |= {} if max_tokens in (UNSET, None) else {"max_tokens": max_tokens}
        counts |= {} if max_completion_tokens is None else {"max_completion_tokens": max_completion_tokens}
        for what, count in counts.items():
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise UsageError(f"{what} of endpoint {model!r} is {count!r}; it must be at least 1")
        heat = 0 if temperature in (UNSET, None) else temperature
        if isinstance(heat, bool) or not isinstance(heat, int | float) or heat < 0:
            raise UsageError(f"temperature of endpoint {model!r} is {temperature!r}; write a number from 0, or null")
        if max_completion_tokens is not None and max_tokens in (UNSET, None):
            max_tokens = None
        changed: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
        changed = {name: value for name, value in changed.items() if value is not UNSET}
        if max_completion_tokens is not None:
            changed["max_completion_tokens"] = max_completion_tokens
        self.web, self.model, self.at_once, self.logprobs = Web(url, **web), str(model), at_once, logprobs
        self.top, self.changed = top_logprobs, changed | _checked(body, model)

    @property
    def version(self) -> str:
        """Of the model's name: what stands behind it cannot be seen from here. And of what changes the requests."""
        more = {"top_logprobs": self.top} if self.logprobs and self.top != TOP else {}
        return digest("endpoint", self.model, self.logprobs, *([more | self.changed] if more or self.changed else []))

    def yes(self, questions: Sequence[Question]) -> list[float | ScoringError]:
        read = _probability if self.logprobs else _written_side
        return self._all(self._first_words(questions), [read] * len(questions))

    def says(self, questions: Sequence[Question], answers: Sequence[str]) -> list[float | ScoringError]:
        def read(choice: Mapping[str, Any], answer: str) -> float:
            return p_says(_listed(choice), answer) if self.logprobs else _is_written(choice, answer)

        return self._all(self._first_words(questions), [partial(read, answer=answer) for answer in answers])

    def _first_words(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        extra = {"logprobs": True, "top_logprobs": self.top} if self.logprobs else {}
        return [self._body(question, 0, 1 if self.logprobs else 8, 0.0, extra) for question in questions]

    def write(
        self, questions: Sequence[Question], seeds: Sequence[int], tokens: int, temperature: float
    ) -> list[str | ScoringError]:
        both = zip(questions, seeds, strict=True)
        bodies = [self._body(question, seed, tokens, temperature, {}) for question, seed in both]
        return self._all(bodies, [_text] * len(bodies))

    def _body(
        self, question: Question, seed: int, tokens: int, temperature: float, extra: Mapping[str, Any]
    ) -> dict[str, Any]:
        messages = [{"role": "system", "content": question.system}] if question.system else []
        body = {
            "model": self.model,
            "messages": [*messages, {"role": "user", "content": _content(question)}],
            "max_tokens": tokens,
            "temperature": temperature,
            "seed": seed,
            **extra,
            **self.changed,
        }
        return {name: value for name, value in body.items() if value is not None}

    def _all(
        self, bodies: Sequence[Mapping[str, Any]], reads: Sequence[Callable[[Mapping[str, Any]], Answer]]
    ) -> list[Answer | ScoringError]:
        """What each of `reads` makes of the answer to its request."""

        def ask(body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Answer]) -> Answer | ScoringError:
            headers = {"content-type": "application/json"}
            try:
                return read(_choice(self.web.request("POST", "/chat/completions", json.dumps(body).encode(), headers)))
            except ScoringError as error:
                return ScoringError(self.web.without_key(str(error)) + _cure(str(error)))

        if not bodies:
            return []
        with ThreadPoolExecutor(min(self.at_once, len(bodies))) as pool:
            return list(pool.map(ask, bodies, reads))


def _checked(body: Any, model: str) -> dict[str, Any]:
    """Further fields of a request.

    Raises:
        UsageError: not a mapping of JSON, or a field that is not to be set.
    """
    if body is not None and not isinstance(body, Mapping):
        raise UsageError(f"body of endpoint {model!r} maps fields of the request to values, and is not {body!r}")
    fields = {str(name): value for name, value in (body or {}).items()}
    own = next((name for name in OURS if name in fields), None)
    if own is not None:
        raise UsageError(f"body of endpoint {model!r} has {own!r}, which is genalign's own; take it out")
    try:
        json.dumps(fields, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"body of endpoint {model!r} is not JSON: {error}") from error
    return fields


def _content(question: Question) -> str | list[dict[str, Any]]:
    """A plain string where there is no picture, which every endpoint takes; else a list of parts."""
    if all(isinstance(piece, str) for piece in question.pieces):
        return "".join(str(piece) for piece in question.pieces)
    parts: list[dict[str, Any]] = []
    for piece in question.pieces:
        if isinstance(piece, Tensor):
            parts.append({"type": "image_url", "image_url": {"url": data_url(piece)}})
        else:
            parts.append({"type": "text", "text": piece})
    return parts


def data_url(picture: Tensor) -> str:
    """(3,H,W) in [0,1] as a PNG inside an address."""
    file = io.BytesIO()
    to_pil(picture).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _cure(message: str) -> str:
    """Which key mends a field that the endpoint refuses, as its message has it."""
    fields = ("max_tokens", "temperature", "logprobs", "seed")
    refused = next((field for field in fields if field in message), None) if " answered 4" in message else None
    keys = {"max_tokens": "max_completion_tokens, or max_tokens: null", "logprobs": "top_logprobs, or logprobs: false"}
    keys |= {"temperature": "temperature: null", "seed": "body: {seed: null}"}
    return "" if refused is None else f"; among the endpoint's settings are {keys[refused]}"


def _choice(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    listed = answer.get("choices") if isinstance(answer, Mapping) else None
    choice = listed[0] if isinstance(listed, list) and listed else None
    for part in (answer, choice):  # with status 200, as gateways answer
        if isinstance(part, Mapping) and part.get("error"):
            raise ScoringError(f"the endpoint answered an error: {server_message(body) or json.dumps(part['error'])}")
    if not isinstance(choice, Mapping):
        raise ScoringError("the endpoint's answer is not a chat completion")
    if choice.get("finish_reason") == "content_filter":
        raise ScoringError("the endpoint's content filter took the answer away")
    return choice


def _probability(choice: Mapping[str, Any]) -> float:
    return p_yes(_listed(choice))


def _listed(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    try:
        tokens = _alternatives(choice["logprobs"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        tokens = []
    if not tokens:
        raise ScoringError("the endpoint gives no top_logprobs; set logprobs: false to read what it writes")
    return tokens


def _alternatives(logprobs: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(token, log-probability) of the first place: chat completions' form, or that of older completions."""
    if logprobs.get("content"):
        listed = logprobs["content"][0]["top_logprobs"]
        return [(str(entry["token"]), float(entry["logprob"])) for entry in listed]
    return [(str(token), float(logprob)) for token, logprob in logprobs["top_logprobs"][0].items()]


def _written_side(choice: Mapping[str, Any]) -> float:
    words = without_thoughts(_content_of(choice) or "").split()
    side = yes_or_no(words[0]) if words else None
    if side is None:
        raise ScoringError(f"the judge wrote neither yes nor no{_refusal(choice)}")
    return float(side == "yes")


def _is_written(choice: Mapping[str, Any], answer: str) -> float:
    words = without_thoughts(_content_of(choice) or "").split()
    if not words:
        raise ScoringError(f"the judge's answer is empty{_refusal(choice)}")
    return float(bare_word(words[0]) in spellings(answer))


def _text(choice: Mapping[str, Any]) -> str:
    text = _content_of(choice)
    if choice.get("finish_reason") == "length":
        raise ScoringError("the judge's answer was cut off; raise max_tokens")
    if text is None or not text.strip():
        raise ScoringError(f"the judge's answer is empty{_refusal(choice)}")
    return text


def _content_of(choice: Mapping[str, Any]) -> str | None:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(text, list):  # in parts, of which those of another type are thoughts
        parts = [part for part in text if isinstance(part, Mapping) and part.get("type") == "text"]
        return "".join(str(part.get("text", "")) for part in parts)
    return text if isinstance(text, str) else None


def _refusal(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    refusal = message.get("refusal") if isinstance(message, Mapping) else None
    return f"; it refused: {' '.join(str(refusal).split())[:200]}" if refusal else ""
