"""Cards of the tab Draw: samples at one seed beside each other, with bars for each reward and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from genalign.demo import markup
from genalign.demo.models import Models
from genalign.demo.works import Work
from genalign.media import leading
from genalign.types import Media, Prompt, Scores

Bar = tuple[str, float | None]
Ranges = dict[str, tuple[float, float]]  # by REWARD/PART: from where to where its bars go


@dataclass
class Drawn:
    """Samples at one seed, by what drew them, in the order in which they are shown; and what rewards say of each: a
    reward's name, whether it is held out, and its bars."""

    seed: int
    samples: dict[str, Media] = field(default_factory=dict)
    scores: dict[str, list[tuple[str, bool, list[Bar]]]] = field(default_factory=dict)


def score(models: Models, work: Work, prompt: Prompt, found: Sequence[Drawn]) -> list[str]:
    """Score all samples by every reward that can read them; sentences about those that cannot."""
    notes = []
    for reward, held_out in models.rewards:
        if lacking := models.lacks(reward, prompt):
            notes.append(f"{reward.name} does not score this prompt, which lacks {', '.join(sorted(lacking))}")
            continue
        for kind in found[0].samples:
            work.check()
            with torch.no_grad(), work.networks():
                scores = reward([prompt] * len(found), Media.cat([one.samples[kind] for one in found]))
            for row, one in enumerate(found):
                one.scores.setdefault(kind, []).append((reward.name, held_out, bars_of(scores, row)))
    return notes


def bars_of(scores: Scores, row: int) -> list[Bar]:
    """The total, where it is not one of the aspects by itself, and every aspect."""
    parts: list[Bar] = [
        (name, float(scores.values[row, k]) if scores.valid[row, k] else None) for k, name in enumerate(scores.names)
    ]
    total = float(scores.total[row]) if scores.total_valid[row] else None
    if len(parts) == 1 or (parts and parts[0][1] == total):
        return parts
    return [("total", total), *parts]


# ---- as HTML --------------------------------------------------------------------------------------------------------


def cards(found: Sequence[Drawn], prompt: Prompt) -> str:
    """What is asked for, and a card for each seed."""
    ranges = ranges_of(found)
    made = []
    for one in found:
        label = f"{prompt.text}, seed {one.seed}"
        parts = [figure(name, label, one, ranges) for name in one.samples]
        wide = " wide" if len(parts) > 1 else ""
        if wide and leading(next(iter(one.samples.values()))) == "image":
            parts.insert(0, _slider(one, label))
        made.append(
            f'<article class="card{wide}"><h3>seed {one.seed}</h3><div class="pair">{"".join(parts)}</div></article>'
        )
    return f'{asked(prompt)}<div class="cards">{"".join(made)}</div>'


def asked(prompt: Prompt) -> str:
    """The prompt, and the media that it brings along."""
    brought = ""
    for name, track in prompt.media.items() if prompt.media is not None else ():
        for row in range(len(track.held)):
            shown = markup.sample(Media(**{name: track}), row, f"{name} that the prompt brings")
            brought += f"<figure>{shown}<figcaption>given</figcaption></figure>"
    return f'<p class="prompt">{markup.text(prompt.text)}</p>' + (f'<div class="strip">{brought}</div>' * bool(brought))


def _slider(one: Drawn, label: str) -> str:
    """The second picture over the first, which uncovers it."""
    (under, first), (over, second) = list(one.samples.items())[:2]
    pictures = markup.sample(first, 0, f"{under}: {label}") + markup.sample(second, 0, f"{over}: {label}")
    name = markup.text(f"uncover {under} under {over}, {label}")
    return (
        f'<figure class="compare"><div class="stack" style="--cut:50%">{pictures}</div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{name}">'
        f"<figcaption>{markup.text(over)} | {markup.text(under)}</figcaption></figure>"
    )


def figure(name: str, label: str, one: Drawn, ranges: Ranges) -> str:
    """A sample and its bars. label: what it is, for a screen reader."""
    blocks = []
    for reward, held_out, parts in one.scores.get(name, []):
        rows = [(part, value, *ranges[f"{reward}/{part}"]) for part, value in parts]
        mark = " <em>held out</em>" if held_out else ""
        blocks.append(
            f'<section class="scores{" judge" if held_out else ""}"><h4>{markup.text(reward)}{mark}</h4>'
            f"{markup.bars(rows)}</section>"
        )
    shown = markup.sample(one.samples[name], 0, f"{name}: {label}")
    return f'<figure class="sample">{shown}<figcaption>{markup.text(name)}</figcaption>{"".join(blocks)}</figure>'


def ranges_of(found: Sequence[Drawn]) -> Ranges:
    """From where to where the bars of each part go: [0,1], or further where a value does."""
    ranges: Ranges = {}
    for one in found:
        for blocks in one.scores.values():
            for reward, _, parts in blocks:
                for part, value in parts:
                    low, high = ranges.get(f"{reward}/{part}", (0.0, 1.0))
                    shown = low if value is None else value
                    ranges[f"{reward}/{part}"] = (min(low, shown), max(high, shown))
    return ranges
