"""The tab Draw: samples of a base and of a run side by side at equal seeds, their scores, and searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from genalign.cli.sample import PLAIN, Sample, sample
from genalign.cli.search import search
from genalign.demo import markup
from genalign.demo.models import BASE, Models
from genalign.demo.works import Followed, Work, watched
from genalign.media import leading
from genalign.types import Media, Prompt, Scores, UsageError

MOST = 8  # samples of a kind at a time
MOST_STEPS, MOST_GUIDANCE, MOST_BUDGET = 200, 50, 1000
SEEDS = 2**32
SHOWN = 8  # samples of one search
Bar = tuple[str, float | None]


@dataclass
class Drawn:
    """Samples at one seed: of the base, and of the run where one is chosen; for each a list of bars a reward."""

    seed: int
    base: Media
    tuned: Media | None = None
    scores: dict[str, list[tuple[str, bool, list[Bar]]]] = field(default_factory=dict)


def drawing(
    models: Models, work: Work, name: str, text: str, seed: float, count: float, guidance: float, steps: float
) -> Iterator[str]:
    """HTML that grows: the samples one by one, then their scores.

    guidance, steps: 0 for the recipe's own.

    Raises:
        GenalignError: a number that is out of range, or as of `sample`.
    """
    first, count = checked_seed(seed), checked_whole(count, MOST, "samples are wanted")
    if not 0 <= guidance <= MOST_GUIDANCE:
        raise UsageError(f"the guidance scale is {guidance:g}; it must lie in 0..{MOST_GUIDANCE}")
    own: dict[str, Any] = {"guidance": guidance or None, "steps": None}
    if steps:
        own["steps"] = checked_whole(steps, MOST_STEPS, "steps are wanted")
    prompt, tuned, found = models.prompt(text), name != BASE, []
    with models.drawing(name) as source:
        for k in range(count):
            work.check()
            one = Drawn(first + k, next(sample(source, [prompt], seed=first + k, base=True, **own)).media)
            if tuned:
                work.check()
                one.tuned = next(sample(source, [prompt], seed=first + k, **own)).media
            found.append(one)
            done = (k + 1) / count
            yield markup.progress(done, f"{k + 1} of {count}{markup.seconds_left(done, work.spent)}") + cards(
                found, prompt, name
            )
    notes = _score(models, work, prompt, found)
    yield cards(found, prompt, name) + "".join(map(markup.note, notes))


def checked_seed(seed: float) -> int:
    """The seed, or the sentence that refuses it."""
    if not 0 <= seed < SEEDS:
        raise UsageError(f"the seed is {seed:g}; it must lie in 0..{SEEDS - 1}")
    return int(seed)


def checked_whole(number: float, most: int, what: str) -> int:
    """The number as it was checked, or the sentence that refuses it."""
    if not 1 <= number <= most:
        raise UsageError(f"{number:g} {what}; ask for 1 to {most}")
    return int(number)


def _score(models: Models, work: Work, prompt: Prompt, found: Sequence[Drawn]) -> list[str]:
    """Score all samples by every reward that can read them; sentences about those that cannot."""
    notes = []
    for reward, held_out in models.rewards:
        if lacking := models.lacks(reward, prompt):
            notes.append(f"{reward.name} does not score this prompt, which lacks {', '.join(sorted(lacking))}")
            continue
        for kind in ("base", "tuned"):
            media = [one.base if kind == "base" else one.tuned for one in found]
            if any(part is None for part in media):
                continue
            work.check()
            with torch.no_grad():
                scores = reward([prompt] * len(found), Media.cat([part for part in media if part is not None]))
            for row, one in enumerate(found):
                one.scores.setdefault(kind, []).append((reward.name, held_out, _bars(scores, row)))
    return notes


def _bars(scores: Scores, row: int) -> list[Bar]:
    """The total, where it is not one of the aspects by itself, and every aspect."""
    parts: list[Bar] = [
        (name, float(scores.values[row, k]) if scores.valid[row, k] else None) for k, name in enumerate(scores.names)
    ]
    total = float(scores.total[row]) if scores.total_valid[row] else None
    if len(parts) == 1 or (parts and parts[0][1] == total):
        return parts
    return [("total", total), *parts]


# ---- as HTML --------------------------------------------------------------------------------------------------------


def cards(found: Sequence[Drawn], prompt: Prompt, name: str) -> str:
    """A card for each seed."""
    ranges = _ranges(found)
    made = []
    for one in found:
        label = f"{prompt.text}, seed {one.seed}"
        parts = [_figure(one.base, "base", label, one, ranges)]
        if one.tuned is not None:
            parts.append(_figure(one.tuned, name, label, one, ranges))
            if leading(one.base) == "image":
                parts.insert(0, _slider(one, label))
        wide = " wide" if one.tuned is not None else ""
        made.append(
            f'<article class="card{wide}"><h3>seed {one.seed}</h3><div class="pair">{"".join(parts)}</div></article>'
        )
    return f'<p class="prompt">{markup.text(prompt.text)}</p><div class="cards">{"".join(made)}</div>'


def _slider(one: Drawn, label: str) -> str:
    assert one.tuned is not None
    over, under = markup.sample(one.tuned, 0, f"tuned: {label}"), markup.sample(one.base, 0, f"base: {label}")
    name = markup.text(f"uncover base under tuned, {label}")
    return (
        f'<figure class="compare"><div class="stack" style="--cut:50%">{under}{over}</div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{name}">'
        f"<figcaption>tuned | base</figcaption></figure>"
    )


def _figure(media: Media, name: str, label: str, one: Drawn, ranges: dict[str, tuple[float, float]]) -> str:
    kind, blocks = "base" if name == "base" else "tuned", []
    for reward, held_out, parts in one.scores.get(kind, []):
        rows = [(part, value, *ranges[f"{reward}/{part}"]) for part, value in parts]
        mark = " <em>held out</em>" if held_out else ""
        blocks.append(
            f'<section class="scores{" judge" if held_out else ""}"><h4>{markup.text(reward)}{mark}</h4>'
            f"{markup.bars(rows)}</section>"
        )
    caption = f"<figcaption>{markup.text(name)}</figcaption>"
    return f'<figure class="sample">{markup.sample(media, 0, f"{name}: {label}")}{caption}{"".join(blocks)}</figure>'


def _ranges(found: Sequence[Drawn]) -> dict[str, tuple[float, float]]:
    """From where to where the bars of each part go: [0,1], or further where a value does."""
    ranges: dict[str, tuple[float, float]] = {}
    for one in found:
        for blocks in one.scores.values():
            for reward, _, parts in blocks:
                for part, value in parts:
                    low, high = ranges.get(f"{reward}/{part}", (0.0, 1.0))
                    shown = low if value is None else value
                    ranges[f"{reward}/{part}"] = (min(low, shown), max(high, shown))
    return ranges


# ---- searches -------------------------------------------------------------------------------------------------------


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
                yield markup.progress(trail.done, said) + _trail(trail, prompt)
        yield _table(run.table(), run.reward.name) + _trail(trail, prompt)


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
