"""The tab Vote: samples of one prompt, blind, at places of chance; a vote is stored before the next ones are shown."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genalign.demo import markup
from genalign.demo.agreement import agreement, best_places, position_bias
from genalign.demo.ballot import RANK, ballot
from genalign.demo.deck import Deck, size_of
from genalign.demo.ranking import checked_ranks, samples_of, votes_of
from genalign.demo.votes import CHOICES, Candidate, Choice, Vote, Votes
from genalign.types import Prompt, UsageError

SHARED_EVERY = 5  # one ballot in so many is one that others have judged, where there is any
LONGEST_NAME = 40


@dataclass(frozen=True)
class Shown:
    """Samples on an annotator's screen, from left to right, since `since` (seconds of time.monotonic).

    token: what a vote on them must name.
    """

    token: str
    prompt: Prompt
    samples: tuple[Candidate, ...]
    since: float

    @property
    def choices(self) -> tuple[str, ...]:
        """What a vote on them may be."""
        return CHOICES if len(self.samples) == 2 else (RANK, "tie", "skip")

    def votes(self, choice: str, ranks: Any, annotator: str) -> list[Vote]:
        """The votes that a choice stands for: one, or one for each pair of a ranking.

        Raises:
            UsageError: it is no choice here, or the ranks are none.
        """
        if choice not in self.choices:
            raise UsageError(f"{choice!r} is no vote; choose one of {', '.join(self.choices)}")
        text, facts, seconds = self.prompt.text, dict(self.prompt.facts), time.monotonic() - self.since
        if len(self.samples) == 2:
            picked: Choice = next(one for one in CHOICES if one == choice)
            left, right = self.samples
            return [Vote(text, left, right, picked, annotator, seconds, facts)]
        places = None if choice == "skip" else [1] * len(self.samples)
        if choice == RANK:
            places = checked_ranks(ranks, len(self.samples))
        return votes_of(text, self.samples, places, annotator, seconds, facts)


class Booth:
    """The votes of every page, by its session: what it shows, and what its next vote means."""

    def __init__(self, deck: Deck, votes: Votes) -> None:
        self.deck, self.votes = deck, votes
        self._shown: dict[str, Shown] = {}
        self._asked: dict[str, tuple[str, str]] = {}  # by whom and for which kind a session was last asked
        self._since_shared: dict[str, int] = {}

    def show(self, session: str, annotator: str, kind: str) -> str:
        """What this page shows, or new samples where they are for somebody else or of another kind."""
        name = annotator_name(annotator)
        shown = self._shown.get(session) if self._asked.get(session) == (name, kind) else None
        self._asked[session] = name, kind
        return self._page(shown or self._next(session, name, kind), name)

    def vote(self, session: str, annotator: str, kind: str, choice: str, token: str, ranks: Any = None) -> str:
        """Store a vote on what the page shows, and show the next samples.

        ranks: the places of the samples from left to right, of a ranking.

        Raises:
            GenalignError: the vote is about others, is no vote, or cannot be stored.
        """
        name, shown = annotator_name(annotator), self._shown.get(session)
        if shown is None or shown.token != token:  # a key pressed twice, or a page of yesterday
            return self._page(shown or self._next(session, name, kind), name, "this one was new; look again")
        self.votes.add_together(shown.votes(choice, ranks, name))
        del self._shown[session]  # stored: whatever fails from here on, it is not asked for again
        said = "ranking" if choice == RANK else choice
        return self._page(self._next(session, name, kind), name, f"stored: {said}")

    def undo(self, session: str, annotator: str, kind: str) -> str:
        """Take back the annotator's last vote, and show its samples again."""
        name = annotator_name(annotator)
        taken = self.votes.undo(name)
        if not taken:
            return self._page(self._next(session, name, kind), name, "there is no vote to take back")
        prompt = Prompt(taken[0].prompt, facts=taken[0].facts)
        self._shown[session] = _on_screen(prompt, samples_of(taken))
        said = "ranking" if len(taken) > 1 else taken[0].choice
        return self._page(self._shown[session], name, f"taken back: {said}")

    def close(self, session: str) -> None:
        self._shown.pop(session, None)
        self._since_shared.pop(session, None)
        self._asked.pop(session, None)

    def _next(self, session: str, annotator: str, kind: str) -> Shown:
        name, passed = annotator_name(annotator), self._since_shared.get(session, 0) + 1
        others = self.votes.unseen(name, ranked=size_of(kind) > 2) if passed >= SHARED_EVERY else []
        if others:
            prompt, samples, passed = Prompt(others[0].prompt, facts=others[0].facts), samples_of(others), 0
        else:
            group = self.deck.take(kind)
            prompt, samples = group.prompt, list(group.samples)
        self._since_shared[session] = passed
        random.SystemRandom().shuffle(samples)
        self._shown[session] = _on_screen(prompt, samples)
        self.deck.fill_ahead(kind)
        return self._shown[session]

    def _page(self, shown: Shown, annotator: str, said: str = "") -> str:
        mine, all_ = self.votes.count(annotator_name(annotator)), self.votes.count()
        files = [self.votes.place(sample) for sample in shown.samples]
        return ballot(shown.token, shown.prompt.text, files, said, mine, all_)

    def figures(self) -> str:
        """What all votes say about themselves: agreement, position bias."""
        votes = self.votes.all()
        if not votes:
            return markup.note("no votes yet")
        ties, skipped = (sum(vote.choice == choice for vote in votes) for choice in ("tie", "skip"))
        given, pairs = self.votes.count(), markup.count(len(votes), "pair")
        lines = [
            f"{markup.count(given, 'vote')} by {markup.count(len({v.annotator for v in votes}), 'annotator')}, on "
            f"{pairs}; {markup.count(ties, 'tie')}, {skipped} skipped"
        ]
        bias, found, places = position_bias(votes), agreement(votes), best_places(votes)
        if bias is not None:
            lines.append(
                f"left side preferred in {bias.left} of {bias.decided} ({bias.left / bias.decided:.0%}; a fair coin is "
                f"as far from half in {bias.p:.0%} of cases)"
            )
        if places:
            counts = ", ".join(f"{count} at place {place + 1}" for place, count in places.items())
            lines.append(f"the best of {markup.count(sum(places.values()), 'ranking')} stood {counts}")
        if found.alpha is None or found.equal is None:
            lines.append("no pair was judged by two annotators yet")
        else:
            lines.append(
                f"{markup.count(found.shared, 'pair')} judged by several: they agree in {found.equal:.0%}, "
                f"Krippendorff's alpha {found.alpha:.2f}"
            )
        against = _win_rates(votes)
        return f"<ul>{''.join(f'<li>{markup.text(line)}</li>' for line in [*lines, *against])}</ul>"


def _on_screen(prompt: Prompt, samples: Sequence[Candidate]) -> Shown:
    return Shown(secrets.token_hex(8), prompt, tuple(samples), time.monotonic())


def _win_rates(votes: Sequence[Vote]) -> list[str]:
    """How often each run was preferred to the base at the same seed."""
    wins: dict[str, list[bool]] = {}
    for vote in votes:
        decided = vote.decided
        if decided is not None and (decided[0].source == "") != (decided[1].source == ""):
            run = decided[0].source or decided[1].source
            wins.setdefault(run, []).append(decided[0].source == run)
    return [
        f"{run} preferred to the base in {sum(won)} of {len(won)} ({sum(won) / len(won):.0%})"
        for run, won in wins.items()
    ]


def annotator_name(name: str) -> str:
    """As it is stored.

    Raises:
        UsageError: there is none, or it is too long.
    """
    found = " ".join(name.split())
    if not found or len(found) > LONGEST_NAME:
        raise UsageError(f"your name has {len(found)} letters; write one of 1 to {LONGEST_NAME}")
    return found
