"""Questions to a judge, and the probability of yes. An answer that cannot be read is a failure, never a number."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from genalign.reward.base import ScoringError
from genalign.reward.template import FACT, Piece, check_template, places
from genalign.types import Media, Prompt, UsageError

Reads = Literal["image", "video", "text"]  # what a judge looks at; `data.judged.Kind` has more
FRAMES = 4  # of a video, evenly spaced, first and last included
LEAST_MASS = 0.01  # of p(yes) + p(no): below it the next token is something else, and their ratio means nothing
MOST_UNLISTED = 0.1  # how far from the true ratio a list of the likeliest tokens may leave p(yes)


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
        """p(yes) / (p(yes) + p(no)) of the next token, in [0,1]; an error where the two are below LEAST_MASS."""
        ...

    def says(self, questions: Sequence[Question], answers: Sequence[str]) -> list[float | ScoringError]:
        """p(the next token is the question's answer), in [0,1]; an answer is one word or number, see `spellings`."""
        ...

    def write(
        self, questions: Sequence[Question], seeds: Sequence[int], tokens: int, temperature: float
    ) -> list[str | ScoringError]:
        """Whole answers of at most `tokens` tokens; one that is cut off is an error. temperature 0: the likeliest."""
        ...


def shown(media: Media, row: int, reads: Reads, graph: bool = False) -> list[Piece]:
    """One row of what is judged: a picture, some frames of a video, or a text; with `graph`, pictures keep theirs."""
    held = media[reads].held[row]
    if isinstance(held, str):
        return [held]
    frames = None
    if reads == "video":
        frames = torch.linspace(0, len(held) - 1, min(FRAMES, len(held))).round().long().tolist()
    read = media[reads].row(row, slice(None) if frames is None else frames)
    picture = read.float() if graph else read.detach().float().cpu()
    return [picture] if frames is None else list(picture)


class Criteria:
    """Which questions there are about a row: one; one a criterion; or one a criterion of its task (facts.task).

    fills: names that the judge has something for. aspects: the reward's name for one question, else the criteria in
    their order. Tasks and criteria with one model are OneReward's (arXiv 2508.21066): a criterion that a task lacks has
    no question, and abstains.

    Raises:
        UsageError: not exactly one of the three is given, or something that is not a text.
    """

    def __init__(
        self,
        name: str,
        fills: Container[str],
        question: str | None,
        criteria: Mapping[str, str] | None,
        tasks: Mapping[str, Mapping[str, str]] | None,
    ) -> None:
        given = [value for value in (question, criteria, tasks) if value is not None]
        if len(given) != 1:
            raise UsageError(f"judge {name!r} needs exactly one of question, criteria and tasks, but has {len(given)}")
        known = [place for place in ("prompt", "sample", "image") if place in fills]
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
                check_template(text, (*known, FACT), f"question {aspect!r} of judge {name!r}")
                aspects[aspect] = None
                self.mentions |= places(text)
        self.aspects = tuple(aspects)
        self.needs = needs_of(self.mentions) | ({"facts.task"} if self.by_task else set())

    def of(self, prompt: Prompt) -> Mapping[str, str]:
        """aspect -> question; without those that name what the prompt lacks, and empty where its task is unknown."""
        assert self.tasks is not None
        of_task = self.tasks.get(str(prompt.facts.get("task")) if self.by_task else "", {})
        return {aspect: text for aspect, text in of_task.items() if brings(prompt, places(text))}


def known_of(prompt: Prompt) -> dict[str, Piece | Sequence[Piece]]:
    """What a prompt brings, by the names that templates have for it: its text, its pictures and its facts."""
    pictures: list[Piece] = []
    if prompt.media is not None and "image" in prompt.media:
        for row in range(len(prompt.media["image"])):
            pictures += shown(prompt.media, row, "image")
    facts = {f"facts.{key}": str(value) for key, value in prompt.facts.items()}
    return {"prompt": prompt.text, "image": pictures, **facts}


def of_prompt(mentions: AbstractSet[str]) -> set[str]:
    """Of the names in a template those of what only some prompts bring."""
    return {name for name in mentions if name == "image" or name.startswith(FACT)}


def brings(prompt: Prompt, mentions: AbstractSet[str]) -> bool:
    """Whether a prompt has all that a template names of it; where it has not, there is nothing to ask."""
    present = {f"facts.{key}" for key, value in prompt.facts.items() if value is not None}
    if prompt.media is not None and len(prompt.media.get("image", ())):
        present.add("image")
    return of_prompt(mentions) <= present


def needs_of(mentions: AbstractSet[str]) -> frozenset[str]:
    """What a template that names these needs of the data; pictures that prompts bring are no need of a reward."""
    return frozenset(name for name in mentions if name == "prompt" or name.startswith(FACT))


# ---- yes and no -----------------------------------------------------------------------------------------------------


def yes_or_no(token: str) -> Literal["yes", "no"] | None:
    """Which of the two a token is, whatever its case and the marks around it ("Yes", " yes", "▁yes", "ĠYes,")."""
    word = bare_word(token)
    return "yes" if word == "yes" else "no" if word == "no" else None


def bare_word(token: str) -> str:
    """A token without the marks around it, in lower case."""
    return token.strip(" \t\n▁ĠĊ\"'.,:;!*").lower()


def p_yes(tokens: Iterable[tuple[str, float]]) -> float:
    """p(yes) / (p(yes) + p(no)), summed over spellings, of (token, log-probability) pairs of one position.

    A side of which no spelling is listed counts as 0: it is below the least probability listed, and below what all of
    them leave.

    Raises:
        ScoringError: p(yes) + p(no) below LEAST_MASS, or a side not listed that may move the ratio by MOST_UNLISTED.
    """
    mass, total, least, best = {"yes": 0.0, "no": 0.0}, 0.0, 1.0, ("", -math.inf)
    for token, logprob in tokens:
        p, side = math.exp(min(logprob, 0.0)), yes_or_no(token)
        total, least, best = total + p, min(least, p), max(best, (token, logprob), key=lambda pair: pair[1])
        if side is not None:
            mass[side] += p
    both = mass["yes"] + mass["no"]
    if not both >= LEAST_MASS:
        raise too_little(both, best[0])
    unlisted = max(0.0, min(least, 1.0 - total)) if 0.0 in mass.values() else 0.0
    if unlisted / (both + unlisted) > MOST_UNLISTED + 1e-9:
        raise ScoringError("the endpoint lists yes or no, but too few tokens to tell the other; raise top_logprobs")
    return mass["yes"] / both


def too_little(mass: float, token: str) -> ScoringError:
    """The error of a next token that is neither yes nor no; token: the likeliest."""
    cure = f"; {THINKS_FIRST}" if thinks_first(token) else ""
    return ScoringError(
        f"the judge's next token is neither yes nor no: p(yes) + p(no) is {mass:.2g}, below {LEAST_MASS:g}, and the "
        f"likeliest token is {token!r}{cure}"
    )


# ---- any one word ---------------------------------------------------------------------------------------------------

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
THINKS_FIRST = "it thinks first: set chat_template_kwargs: {enable_thinking: false}"


def thinks_first(token: str) -> bool:
    """Whether a first token opens a thought, so that it is no answer."""
    return token.strip().startswith(("<think", "<|channel", "<seed:think", "[THINK"))


def spellings(answer: str) -> frozenset[str]:
    """The bare words that an answer may be written as: "Three" is three and 3, "3" too, "Yes" is yes."""
    word = bare_word(answer)
    if word in NUMBERS:
        return frozenset({word, str(NUMBERS.index(word))})
    if word.isdecimal() and int(word) < len(NUMBERS):
        return frozenset({word, NUMBERS[int(word)]})
    return frozenset({word})


def p_says(tokens: Iterable[tuple[str, float]], answer: str) -> float:
    """The probability of an answer, summed over its spellings, of (token, log-probability) pairs of one position.

    One that is not listed has 0: it is below the least probability listed.

    Raises:
        ScoringError: the likeliest token opens a thought, or too few are listed to take one that is not for 0.
    """
    wanted, listed = spellings(answer), list(tokens)
    likeliest = max(listed, key=lambda pair: pair[1])[0]
    if thinks_first(likeliest):
        raise ScoringError(f"the judge's next token is {likeliest!r}; {THINKS_FIRST}")
    found = [math.exp(min(logprob, 0.0)) for token, logprob in listed if bare_word(token) in wanted]
    least = math.exp(min(min(logprob for _, logprob in listed), 0.0))
    if not found and least > MOST_UNLISTED:
        raise ScoringError(
            f"the endpoint lists too few tokens to tell the probability of {answer!r}; raise top_logprobs"
        )
    return sum(found)
