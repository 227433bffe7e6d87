"""The tab Vote: two samples at one prompt, blind, sides shuffled; a vote is stored before the next pair is shown."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from genalign.demo import markup
from genalign.demo.agreement import agreement, position_bias
from genalign.demo.deck import Deck, Pair
from genalign.demo.votes import CHOICES, Candidate, Choice, Vote, Votes
from genalign.types import GenalignError, Prompt, UsageError

SHARED_EVERY = 5  # one pair in so many is one that others have judged, where there is any
LONGEST_NAME = 40
OTHERS = (("tie", "tie", "↓"), ("skip", "skip", "S"), ("undo", "undo", "U"))  # choice, words, key


@dataclass(frozen=True)
class Shown:
    """A pair on an annotator's screen since `since` (seconds of time.monotonic); token: what a vote on it must name."""

    token: str
    pair: Pair
    left: Candidate
    right: Candidate
    since: float


class Booth:
    """The votes of every page, by its session: which pair it shows, and what its next vote means."""

    def __init__(self, deck: Deck, votes: Votes) -> None:
        self.deck, self.votes = deck, votes
        self._shown: dict[str, Shown] = {}
        self._since_shared: dict[str, int] = {}

    def show(self, session: str, annotator: str, kind: str) -> str:
        """The pair on this page, or a new one of this kind."""
        return self._page(self._next(session, annotator, kind), annotator)

    def vote(self, session: str, annotator: str, kind: str, choice: str, token: str) -> str:
        """Store a vote on the pair that the page shows, and show the next one.

        Raises:
            GenalignError: the vote is about another pair, is no vote, or cannot be stored.
        """
        name, shown = annotator_name(annotator), self._shown.get(session)
        if choice not in CHOICES:
            raise UsageError(f"{choice!r} is no vote; choose one of {', '.join(CHOICES)}")
        if shown is None or shown.token != token:  # a key pressed twice, or a page of yesterday
            return self._page(shown or self._next(session, name, kind), name, "this pair was new; look again")
        picked: Choice = next(one for one in CHOICES if one == choice)
        prompt = shown.pair.prompt
        seconds = time.monotonic() - shown.since
        self.votes.add(Vote(prompt.text, shown.left, shown.right, picked, name, seconds, dict(prompt.facts)))
        del self._shown[session]  # stored: whatever fails from here on, it is not asked for again
        return self._page(self._next(session, name, kind), name, f"stored: {choice}")

    def undo(self, session: str, annotator: str, kind: str) -> str:
        """Take back the annotator's last vote, and show its pair again."""
        name = annotator_name(annotator)
        vote = self.votes.undo(name)
        if vote is None:
            return self._page(self._next(session, name, kind), name, "there is no vote to take back")
        pair = Pair(Prompt(vote.prompt, facts=vote.facts), vote.left, vote.right)
        self._shown[session] = _on_screen(pair, vote.left, vote.right)
        return self._page(self._shown[session], name, f"taken back: {vote.choice}")

    def close(self, session: str) -> None:
        self._shown.pop(session, None)
        self._since_shared.pop(session, None)

    def _next(self, session: str, annotator: str, kind: str) -> Shown:
        name, passed = annotator_name(annotator), self._since_shared.get(session, 0) + 1
        others = self.votes.unseen(name) if passed >= SHARED_EVERY else None
        if others is not None:
            pair, passed = Pair(Prompt(others.prompt, facts=others.facts), others.left, others.right), 0
        else:
            pair = self.deck.take(kind)
        self._since_shared[session] = passed
        sides = [pair.first, pair.second]
        random.SystemRandom().shuffle(sides)
        self._shown[session] = _on_screen(pair, *sides)
        self.deck.fill_ahead(kind)
        return self._shown[session]

    def _page(self, shown: Shown, annotator: str, said: str = "") -> str:
        mine, all_ = self.votes.count(annotator_name(annotator)), self.votes.count()
        sides = "".join(self._side(shown, side) for side in ("left", "right"))
        others = "".join(_button(choice, words, key) for choice, words, key in OTHERS)
        status = f"{markup.text(said)} · " if said else ""
        return (
            f'<div class="ballot" tabindex="-1" data-pair="{shown.token}">'
            f'<p class="prompt">{markup.text(shown.pair.prompt.text)}</p>'
            f'<div class="sides">{sides}</div><div class="choices">{others}</div>'
            f'<p class="note" role="status">{status}<b class="mine">{mine}</b> by you, {all_} in all</p></div>'
        )

    def _side(self, shown: Shown, side: str) -> str:
        file = self.votes.place(shown.left if side == "left" else shown.right)
        if not file.is_file():
            raise GenalignError(
                f"the sample {file.name} is missing from the folder of votes; restore it, or skip the pair"
            )
        drawn = markup.element(file, markup.medium_of(file), f"{side} sample of {shown.pair.prompt.text}")
        arrow = "←" if side == "left" else "→"
        return f'<figure data-choice="{side}">{drawn}{_button(side, f"{side} is better", arrow)}</figure>'

    def figures(self) -> str:
        """What all votes say about themselves: agreement, position bias."""
        votes = self.votes.all()
        if not votes:
            return markup.note("no votes yet")
        ties, skipped = (sum(vote.choice == choice for vote in votes) for choice in ("tie", "skip"))
        lines = [
            f"{markup.count(len(votes), 'vote')} by {markup.count(len({v.annotator for v in votes}), 'annotator')}"
        ]
        lines[0] += f"; {markup.count(ties, 'tie')}, {skipped} skipped"
        bias, found = position_bias(votes), agreement(votes)
        if bias is not None:
            lines.append(
                f"left side preferred in {bias.left} of {bias.decided} ({bias.left / bias.decided:.0%}; a fair coin is "
                f"as far from half in {bias.p:.0%} of cases)"
            )
        if found.alpha is None or found.equal is None:
            lines.append("no pair was judged by two annotators yet")
        else:
            lines.append(
                f"{markup.count(found.shared, 'pair')} judged by several: they agree in {found.equal:.0%}, "
                f"Krippendorff's alpha {found.alpha:.2f}"
            )
        against = _win_rates(votes)
        return f"<ul>{''.join(f'<li>{markup.text(line)}</li>' for line in [*lines, *against])}</ul>"


def _button(choice: str, words: str, key: str) -> str:
    return f'<button type="button" data-choice="{choice}">{words} <kbd>{key}</kbd></button>'


def _on_screen(pair: Pair, left: Candidate, right: Candidate) -> Shown:
    return Shown(secrets.token_hex(8), pair, left, right, time.monotonic())


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
