"""Searches of the tab Draw: their curves and best samples while they go on, and the table at their end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from genalign.cli.sample import PLAIN, Sample
from genalign.cli.search import search
from genalign.demo import markup
from genalign.demo.cards import asked
from genalign.demo.draw import checked_seed, checked_whole
from genalign.demo.models import Models
from genalign.demo.works import Followed, Work, watched
from genalign.types import Media, Prompt, Scores, UsageError

MOST_BUDGET = 1000
SHOWN = 8  # samples of one search


class Trail:
    """What a search showed so far: the best reward by the samples scored, and the best sample each time it grew.

    names: plain sampling and the searches, in the order in which they run.
    """

    def __init__(self, names: Sequence[str], budget: float) -> None:
        self.names, self.budget, self.finished = names, budget, 0
        # Written by the search's thread while the page's reads: the keys stay as they are, and lists only grow.
        self.curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        self.best: dict[str, list[tuple[float, Media]]] = {name: [] for name in names}

    def see(self, prompts: Sequence[Prompt], media: Media, scores: Scores) -> None:
        """What a search calls a reward with, and what that said."""
        name = self.names[min(self.finished, len(self.names) - 1)]
        curve, kept = self.curves[name], self.best[name]
        total = torch.where(scores.total_valid, scores.total.detach(), float("-inf"))
        value, row = (float(found) for found in total.max(0))
        scored, best = curve[-1] if curve else (0.0, float("-inf"))
        curve.append((scored + len(prompts), max(best, value)))
        if value > best:
            kept.append((value, detached(media.select([int(row)]))))

    @property
    def done(self) -> float:
        """The share of the work, in [0,1]: each search has the same budget, of which a step of ReNO costs three."""
        name = self.names[min(self.finished, len(self.names) - 1)]
        curve, whole = self.curves[name], self.budget / 3 if name == "reno" else self.budget
        within = min(curve[-1][0] / whole, 1.0) if curve and name != PLAIN else 0.0
        return min((max(self.finished - 1, 0) + within) / (len(self.names) - 1), 1.0)


def detached(media: Media) -> Media:
    """Without the graph by which a search moves."""
    held = {}
    for name, track in media.items():
        rows = track.held
        held[name] = replace(track, held=rows.detach()) if isinstance(rows, torch.Tensor) else track
    return Media(**held)


def searching(
    models: Models, work: Work, name: str, text: str, seed: float, methods: Sequence[str], reward: str, budget: float
) -> Iterator[str]:
    """HTML of a search while it goes on: curve, the best samples so far; at its end the table beside plain sampling.

    reward: a reward to search for, "" for the recipe's.

    Raises:
        GenalignError: as of `search`, or no search is chosen. CancelledError: by the page.
    """
    first = checked_seed(seed)
    checked_whole(budget, MOST_BUDGET, "samplings are to be spent")
    if not methods:
        raise UsageError("there is no search; choose at least one")
    prompt, trail, found = models.prompt(text), Trail([PLAIN, *methods], budget), list[Sample]()
    with models.drawing(name) as source:
        rewards = [reward] if reward else []
        run = search(source, [prompt], searches=methods, rewards=rewards, budget=budget, seed=first)
        run.reward = Followed(run.reward, work, trail.see)

        def go() -> None:
            for one in run:
                found.append(one)
                trail.finished = len(found)

        for ended in watched(work, go):
            if not ended:
                said = (
                    f"{min(max(trail.finished, 1), len(methods))} of {markup.count(len(methods), 'search', 'searches')}"
                )
                said += markup.seconds_left(trail.done, work.spent)
                yield markup.progress(trail.done, said) + asked(prompt) + _trail(trail, prompt)
        yield asked(prompt) + _table(run.table(), run.reward.name) + _trail(trail, prompt)


def _trail(trail: Trail, prompt: Prompt) -> str:
    """The curves, and for each search its best samples from the first to the last."""
    curves = {name: list(curve) for name, curve in trail.curves.items() if curve and name != PLAIN}
    parts = [markup.curve("best reward so far", curves, "samples scored")] if curves else []
    for name, found in trail.best.items():
        if not (kept := list(found)):
            continue
        shown = kept if len(kept) <= SHOWN else [kept[0], *kept[1 - SHOWN :]]
        figures = ""
        for value, media in shown:
            drawn = markup.sample(media, 0, f"{name}: {prompt.text}, reward {value:.3f}")
            figures += f"<figure>{drawn}<figcaption>{value:.3f}</figcaption></figure>"
        parts.append(f'<h4>{markup.text(name)}</h4><div class="strip">{figures}</div>')
    return "".join(parts)


def _table(rows: Sequence[Mapping[str, Any]], reward: str) -> str:
    judged = "judge" in rows[0]
    headings = ["search", reward, "gain", "evaluations", *(["judge"] if judged else [])]
    lines = "".join(f"<th>{markup.text(heading)}</th>" for heading in headings)
    for row in rows:
        cells = [row["search"], _number(row["reward"]), _number(row["gain"], "+"), f"{row['evaluations']:.1f}"]
        cells += [_number(row["judge"])] if judged else []
        lines += f"</tr><tr>{''.join(f'<td>{markup.text(cell)}</td>' for cell in cells)}"
    return f"<table><tr>{lines}</tr></table>"


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"
