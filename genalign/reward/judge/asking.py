"""Questions to a judge, and how its answers are read. An answer that cannot be read is a failure, never a number."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from genalign.reward.base import ScoringError
from genalign.types import Media, Prompt, UsageError, nearest

Reads = Literal["image", "video", "text"]  # what a judge looks at; `data.judged.Kind` has more
Piece = str | Tensor  # text, or a picture (3,H,W) in [0,1]
FRAMES = 4  # of a video, evenly spaced, first and last included
PLACE = re.compile(r"\{([a-z]+(?:\.\w+)?)\}")


@dataclass(frozen=True)
class Question:
    """One turn of a user: text and pictures in their order. system: what stands before it, if anything."""

    pieces: tuple[Piece, ...]
    system: str | None = None


class Answerer(Protocol):
    """Who answers: a model in this process, or an endpoint. One answer a question, or what went wrong with it."""

    @property
    def version(self) -> str: ...

    def yes(self, questions: Sequence[Question]) -> list[float | ScoringError]:
        """p(yes) / (p(yes) + p(no)) of the next token, in [0,1]."""
        ...

    def write(
        self, questions: Sequence[Question], seeds: Sequence[int], tokens: int, temperature: float
    ) -> list[str | ScoringError]:
        """Whole answers of at most `tokens` tokens; one that is cut off is an error. temperature 0: the likeliest."""
        ...


def fill(template: str, values: Mapping[str, Piece | Sequence[Piece]]) -> tuple[Piece, ...]:
    """A template with its {names} replaced by texts and pictures; any other brace stays as it is."""
    pieces: list[Piece] = []
    for k, part in enumerate(PLACE.split(template)):
        value = part if k % 2 == 0 else values.get(part, f"{{{part}}}")
        for piece in [value] if isinstance(value, str | Tensor) else value:
            if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
                pieces[-1] += piece
            elif not (isinstance(piece, str) and not piece):
                pieces.append(piece)
    return tuple(pieces)


def places(template: str) -> set[str]:
    """The {names} of a template."""
    return set(PLACE.findall(template))


def shown(media: Media, row: int, reads: Reads, graph: bool = False) -> list[Piece]:
    """One row of what is judged: a picture, some frames of a video, or a text; with `graph`, pictures keep theirs."""
    data = media[reads].data[row]
    if isinstance(data, str):
        return [data]
    picture = data.float() if graph else data.detach().float().cpu()
    if reads == "image":
        return [picture]
    frames = torch.linspace(0, len(picture) - 1, min(FRAMES, len(picture))).round().long()
    return list(picture[frames])


class Criteria:
    """Which questions there are about a row: one; one a criterion; or one a criterion of its task (facts.task).

    aspects: the reward's name for one question, else the criteria in their order. Tasks and criteria with one model are
    OneReward's (arXiv 2508.21066): a criterion that a task lacks has no question, and abstains.

    Raises:
        UsageError: not exactly one of the three is given, or something that is not a text.
    """

    def __init__(
        self,
        name: str,
        question: str | None,
        criteria: Mapping[str, str] | None,
        tasks: Mapping[str, Mapping[str, str]] | None,
    ) -> None:
        given = [value for value in (question, criteria, tasks) if value is not None]
        if len(given) != 1:
            raise UsageError(f"judge {name!r} needs exactly one of question, criteria and tasks, but has {len(given)}")
        plain = {name: question} if question is not None else criteria
        self.tasks = {"": plain} if plain is not None else tasks
        if not isinstance(self.tasks, Mapping) or not all(isinstance(t, Mapping) and t for t in self.tasks.values()):
            raise UsageError(f"criteria of judge {name!r} map names to questions, and tasks map names to criteria")
        self.by_task = plain is None
        self.mentions: set[str] = set()
        aspects: dict[str, None] = {}  # of all tasks, each once, in their order
        for of_task in self.tasks.values():
            for aspect, text in of_task.items():
                if not isinstance(text, str) or not text.strip():
                    raise UsageError(f"every question of judge {name!r} must be a text")
                aspects[aspect] = None
                self.mentions |= places(text)
        self.aspects = tuple(aspects)
        self.facts = {place for place in self.mentions if place.startswith("facts.")}
        self.needs = frozenset(self.facts | ({"facts.task"} if self.by_task else set()))

    def of(self, prompt: Prompt) -> Mapping[str, str]:
        """aspect -> question; without those whose facts the row lacks, and empty where its task is unknown."""
        assert self.tasks is not None
        of_task = self.tasks.get(str(prompt.facts.get("task")) if self.by_task else "", {})
        present = {f"facts.{key}" for key, value in prompt.facts.items() if value is not None}
        return {aspect: text for aspect, text in of_task.items() if places(text) & self.facts <= present}


def facts_of(prompt: Prompt) -> dict[str, Piece]:
    """A prompt's facts by the names that templates have for them."""
    return {f"facts.{key}": str(value) for key, value in prompt.facts.items()}


def check_places(name: str, template: str, known: Iterable[str]) -> None:
    """Refuse a template with a {name} that nothing fills.

    Raises:
        UsageError: naming the nearest that is filled.
    """
    for place in places(template):
        if place not in set(known) and not place.startswith("facts."):
            raise UsageError(f"the template of judge {name!r} has {{{place}}}{nearest(place, known)}")


# ---- reading answers ------------------------------------------------------------------------------------------------


def yes_or_no(token: str) -> Literal["yes", "no"] | None:
    """Which of the two a token is, whatever its case and the marks around it ("Yes", " yes", "▁yes", "ĠYes,")."""
    word = token.strip(" \t\n▁ĠĊ\"'.,:;!*").lower()
    return "yes" if word == "yes" else "no" if word == "no" else None


def p_yes(tokens: Iterable[tuple[str, float]]) -> float:
    """p(yes) / (p(yes) + p(no)), summed over spellings, of (token, log-probability) pairs of one position.

    A side of which no spelling is listed counts as 0: exact to within the least probability listed.

    Raises:
        ScoringError: neither side is listed.
    """
    mass = {"yes": 0.0, "no": 0.0}
    for token, logprob in tokens:
        side = yes_or_no(token)
        if side is not None:
            mass[side] += math.exp(logprob)
    if mass["yes"] + mass["no"] <= 0:
        raise ScoringError("the judge's next token is neither yes nor no")
    return mass["yes"] / (mass["yes"] + mass["no"])


MARKED = re.compile(
    r"score\W{0,8}?(-?\d+(?:\.\d+)?)(?![\d.]*\d|[eE][-+]?\d|\s*[-–]\s*\d)(\s*(?:/|(?:out )?of)\s*(\d+(?:\.\d+)?))?",
    re.I,
)
BARE = re.compile(r"\s*(-?\d+(?:\.\d+)?)(\s*/\s*(\d+(?:\.\d+)?))?\s*\.?\s*")


def read_score(text: str, low: float, high: float) -> float:
    """The number of an answer that is one, or that ends in `Score: 3.5`, `{"score": 4}` or `Final Score: 4/5`.

    Raises:
        ScoringError: no such number, one outside [low, high], or one out of another maximum.
    """
    found = BARE.fullmatch(text) or ([None, *MARKED.finditer(text)][-1])
    if found is None:
        raise ScoringError(f"the judge gave no score: {_short(text)}")
    number, most = float(found[1]), found[3]
    if not low <= number <= high or (most is not None and float(most) != high):
        raise ScoringError(f"the judge's score {found[0].strip()!r} is outside [{low:g}, {high:g}]")
    return number


def read_scores(text: str, keys: Sequence[str], low: float, high: float) -> list[float]:
    """The numbers of an answer's last JSON object {"scores": {key: number}}, one for each key and for no other.

    Raises:
        ScoringError: no such object, a key missing or unknown, a number outside [low, high].
    """
    scores = _last_scores(text)
    if scores is None or set(scores) != set(keys):
        raise ScoringError(f"the judge did not score exactly {', '.join(keys)}: {_short(text)}")
    numbers = [scores[key] for key in keys]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and low <= n <= high for n in numbers):
        raise ScoringError(f"the judge's scores {numbers} are not numbers in [{low:g}, {high:g}]")
    return [float(number) for number in numbers]


def _last_scores(text: str) -> Mapping[str, Any] | None:
    decoder, found = json.JSONDecoder(), None
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            parsed, _ = decoder.raw_decode(text[start:])
        except (ValueError, RecursionError):
            continue
        if isinstance(parsed, dict) and isinstance(parsed.get("scores"), dict):
            found = parsed["scores"]
    return found


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) < 80 else f"...{line[-77:]}")
