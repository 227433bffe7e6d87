"""A judge behind any OpenAI-compatible endpoint: questions out as chat completions, probabilities and texts back."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from torch import Tensor

from genalign.media.image import to_pil
from genalign.reward.base import ScoringError, digest
from genalign.reward.judge.asking import Question, p_yes, yes_or_no
from genalign.reward.runtime.web import Web
from genalign.types import UsageError

TOP = 20  # alternatives asked for; the most that OpenAI's own endpoint gives
Answer = TypeVar("Answer")


class Endpoint:
    """POST url/chat/completions, `at_once` requests at a time.

    model: its name there. url, key, timeout, retries, pause, longest_wait: as `Web` takes them; url ends in /v1 as a
    rule, and key names an environment variable. logprobs: False where the endpoint gives none: p(yes) is then 1 or 0 by
    what it writes. Pictures cross as PNG (8 bits a channel, lossless), inside the request.

    A refused request, an answer that is not a chat completion, and one that was cut off are failures of their question.

    Raises:
        UsageError: an unknown setting (the nearest is named), or one that does not fit.
    """

    def __init__(self, url: str, model: str, *, at_once: int = 8, logprobs: bool = True, **web: Any) -> None:
        Web.check_settings("an endpoint", web, beside=("model", "at_once", "logprobs"))
        if not isinstance(at_once, int) or at_once < 1:
            raise UsageError(f"at_once of endpoint {model!r} is {at_once!r}; it must be at least 1")
        self.web, self.model, self.at_once, self.logprobs = Web(url, **web), str(model), at_once, logprobs

    @property
    def version(self) -> str:
        """Of the model's name: what stands behind it cannot be seen from here."""
        return digest("endpoint", self.model, self.logprobs)

    def yes(self, questions: Sequence[Question]) -> list[float | ScoringError]:
        extra = {"logprobs": True, "top_logprobs": TOP} if self.logprobs else {}
        bodies = [self._body(question, 0, 1 if self.logprobs else 8, 0.0) | extra for question in questions]
        return self._all(bodies, _probability if self.logprobs else _written_side)

    def write(
        self, questions: Sequence[Question], seeds: Sequence[int], tokens: int, temperature: float
    ) -> list[str | ScoringError]:
        both = zip(questions, seeds, strict=True)
        bodies = [self._body(question, seed, tokens, temperature) for question, seed in both]
        return self._all(bodies, _text)

    def _body(self, question: Question, seed: int, tokens: int, temperature: float) -> dict[str, Any]:
        messages = [{"role": "system", "content": question.system}] if question.system else []
        return {
            "model": self.model,
            "messages": [*messages, {"role": "user", "content": _content(question)}],
            "max_tokens": tokens,
            "temperature": temperature,
            "seed": seed,
        }

    def _all(
        self, bodies: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Answer]
    ) -> list[Answer | ScoringError]:
        def ask(body: Mapping[str, Any]) -> Answer | ScoringError:
            headers = {"content-type": "application/json"}
            try:
                return read(_choice(self.web.request("POST", "/chat/completions", json.dumps(body).encode(), headers)))
            except ScoringError as error:
                return error

        if not bodies:
            return []
        with ThreadPoolExecutor(min(self.at_once, len(bodies))) as pool:
            return list(pool.map(ask, bodies))


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


def _choice(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
        if isinstance(answer, Mapping) and answer.get("error"):
            raise ScoringError(f"the endpoint answered an error: {json.dumps(answer['error'])[:200]}")
        choice = answer["choices"][0]
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        choice = None
    if not isinstance(choice, Mapping):
        raise ScoringError("the endpoint's answer is not a chat completion")
    return choice


def _probability(choice: Mapping[str, Any]) -> float:
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        tokens = [(str(entry["token"]), float(entry["logprob"])) for entry in listed]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ScoringError("the endpoint gives no top_logprobs; set logprobs: false to read what it writes") from error
    return p_yes(tokens)


def _written_side(choice: Mapping[str, Any]) -> float:
    words = str((choice.get("message") or {}).get("content") or "").split()
    side = yes_or_no(words[0]) if words else None
    if side is None:
        raise ScoringError("the judge wrote neither yes nor no")
    return float(side == "yes")


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(text, list):  # in parts, of which those of another type are thoughts
        text = "".join(str(part.get("text", "")) for part in text if part.get("type") == "text")
    if choice.get("finish_reason") == "length":
        raise ScoringError("the judge's answer was cut off; raise max_tokens")
    if not isinstance(text, str) or not text.strip():
        raise ScoringError("the judge's answer is empty")
    return text
