"""How well a reward agrees with judged samples, and how far it is from another reward.

`evaluate_reward` for a program; `print_report` is what `genalign eval-reward` prints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genalign.cli.judged_scores import BIASES, Sample, group_of, samples_of, score_all
from genalign.data.comparisons import read_comparisons
from genalign.data.judged import Comparison, Comparisons
from genalign.files.places import find
from genalign.media import MEDIA
from genalign.media.files import beside
from genalign.reward import build_reward, check_needs
from genalign.reward.fit import measures
from genalign.reward.wrapper import with_defaults
from genalign.types import MODALITIES, Reward, UsageError

SIZES = (1, 2, 4, 8, 16, 32, 64)
TIES = "ties"  # the subset of RewardBench 2 with a score of its own


def evaluate_reward(
    reward: str | Mapping[str, Any] | Reward,
    data: str | Path | Comparisons,
    against: str | Mapping[str, Any] | Reward | None = None,
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """Hold a reward against judged samples; the rows that `report` makes.

    Args:
        reward: a reward, or what `build_reward` takes: a reward file, `file.py:function`, a shipped name, a mapping.
        data: a file of one of the public forms (see `read_comparisons`), or what that returned.
        against: another reward: its distance, and what it thinks of the best of n by this one.
        batch_size: samples at a time.

    Raises:
        UsageError: no such reward or file, or a reward that reads what the file does not have.
    """
    built, other = _built(reward), None if against is None else _built(against)
    found = data if isinstance(data, Comparisons) else read_judged(data, built)
    for one in (built, *([other] if other is not None else [])):
        check_needs(one, {found.kind, "prompt", "facts.user", *beside(found.kind)})
    return report(built, found, other, batch_size)


def read_judged(data: str | Path, reward: Reward) -> Comparisons:
    """Judged samples from a file, or from a shipped one, as the kind of media that `reward` reads.

    Raises:
        UsageError: as `read_comparisons`.
    """
    kinds = sorted(reward.needs & set(MODALITIES))
    return read_comparisons(find(str(data), Path(), "assets") or Path(data), kinds[0] if len(kinds) == 1 else None)


def _built(reward: str | Mapping[str, Any] | Reward) -> Reward:
    return build_reward(reward, Path()) if isinstance(reward, str | Mapping) else reward


def report(reward: Reward, found: Comparisons, other: Reward | None = None, size: int = 64) -> list[dict[str, Any]]:
    """Rows of numbers, None where there is nothing to measure.

    {"aspect"}: agreement with the verdicts, by the reward's aspect of that name or else its total: see `measures`;
    `unscored` pairs, which it abstained from or failed on, count nowhere. {"subset"}: RewardBench 2's scores, and their
    mean. {"best_of"}: what the best of n by this reward is worth to the judges (or to `other`), and its KL in nats.
    {"against"}: the STARC distance to `other`. {"judged"}: of a judge that is shown several samples at once, the mean
    bias towards the first, and the share of samples on which its two orders disagree. {"unscored"}: how many of all
    samples have no total, and of how many of these the reward abstained or failed. {"error"}: why, and on how many
    samples. {"truncated"}: a head that saw only the beginning of the text of some samples.

    Raises:
        UsageError: the file has nothing that can be compared.
    """
    if not found.pairs and not found.ratings:
        raise UsageError(f"{found.source} holds no verdict; add some")
    personal = bool(with_defaults(reward).users)
    samples = samples_of(found, personal)
    direct = with_defaults(reward).pairwise
    scored = score_all(reward, found, samples, size)
    columns = scored.columns
    rows: list[dict[str, Any]] = []
    for aspect in dict.fromkeys(pair.aspect for pair in found.pairs):
        pairs = [pair for pair in found.pairs if pair.aspect == aspect]
        delta = _direct(reward, found, pairs, size) if direct else _leads(columns, aspect, samples, pairs, personal)
        rows.append({"aspect": aspect, **agreement(found, pairs, delta)})
    rows += _biases(columns)
    places = [place for place, _ in samples]
    total = dict(zip(places, columns["total"].tolist(), strict=True))
    rows += _subsets(found, total)
    gold: dict[int, float] = _worth(found)
    if other is not None:
        others = score_all(other, found, samples, size).columns["total"]
        gold = dict(zip(places, others.tolist(), strict=True))
        groups = np.array([group_of(found, place) for place in places])
        both = np.isfinite(columns["total"]) & np.isfinite(others)
        distance = measures.starc(columns["total"][both], others[both], groups[both])
        rows.append({"against": other.name, "starc": distance, "samples": int(both.sum())})
    return [_plain(row) for row in [*rows, *_curve(found, total, gold), *scored.faults()]]


def agreement(found: Comparisons, pairs: Sequence[Comparison], delta: np.ndarray) -> dict[str, Any]:
    """How leads (N,), NaN where there is none, agree with the verdicts of pairs."""
    scored = np.isfinite(delta)
    h, lead = np.array([pair.p for pair in pairs])[scored], delta[scored]
    kept = [pair for pair, ok in zip(pairs, scored, strict=True) if ok]
    best, eps = measures.accuracy_with_ties(h, lead)
    ece, brier = measures.calibration(h, lead)
    sizes: dict[int, float] = {}
    for pair in kept:
        for place in (pair.a, pair.b):
            if place not in sizes:  # a video is opened for it
                sizes[place] = _extent(found, place)
    longer = np.array([sizes[pair.a] - sizes[pair.b] for pair in kept])
    return {
        "pairs": len(pairs),
        "tied": int((h == 0.5).sum()),
        "unscored": int((~scored).sum()),
        "accuracy": measures.accuracy(h, lead),
        "accuracy_with_ties": best,
        "ties_below": eps,
        "kendall": measures.kendall(h, lead),
        "ece": ece,
        "brier": brier,
        "temperature": measures.temperature(h, lead),
        "length_bias": measures.length_bias(lead, longer),
    }


def _leads(
    columns: dict[str, np.ndarray], aspect: str, samples: Sequence[Sample], pairs: Sequence[Comparison], personal: bool
) -> np.ndarray:
    """(N,) by how much a is ahead of b, by the column of that aspect or the total, as the pair's user sees it."""
    column = columns.get(aspect, columns["total"])
    place = {sample: k for k, sample in enumerate(samples)}
    leads = []
    for pair in pairs:
        user = pair.user if personal else ""
        leads.append(column[place[pair.a, user]] - column[place[pair.b, user]])
    return np.array(leads)


def _biases(columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The row of a judge that is shown several samples at once; none of others."""
    row: dict[str, Any] = {"judged": 0}
    for name in BIASES:
        if name in columns:
            values = columns[name][np.isfinite(columns[name])]
            row["judged"] = max(row["judged"], len(values))
            row[name] = float(values.mean()) if len(values) else measures.NOTHING
    return [row] if row["judged"] else []


def _direct(reward: Any, found: Comparisons, pairs: Sequence[Comparison], size: int) -> np.ndarray:
    """(N,) logits of a reward that compares two samples directly."""
    leads, size = [], found.at_once(size)
    for at in range(0, len(pairs), size):
        part = pairs[at : at + size]
        users = [pair.user for pair in part]
        prompts, first = found.load([pair.a for pair in part], users)
        with torch.no_grad():
            leads.append(reward.compare(prompts, first, found.load([pair.b for pair in part], users)[1]))
    return torch.cat(leads).double().numpy()


def _subsets(found: Comparisons, total: dict[int, float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for subset in dict.fromkeys(listing.subset for listing in found.listings):
        listings = [listing for listing in found.listings if listing.subset == subset]
        read: dict[str, tuple[np.ndarray, int]] = {}  # prompt -> scores, right ones first, and how many these are
        for listing in listings:
            scores = np.array([total[place] for place in (*listing.right, *listing.wrong)])
            if np.isfinite(scores).all():
                read[listing.name] = (scores, len(listing.right))
        if subset.lower() == TIES:
            value = measures.ties_score(read)
        else:
            value = float(np.mean([measures.top_one(*row) for row in read.values()])) if read else measures.NOTHING
        unscored = len({listing.name for listing in listings}) - len(read)
        rows.append({"subset": subset, "score": value, "prompts": len(read), "unscored": unscored})
    if rows:
        mean = float(np.mean([row["score"] for row in rows]))
        rows.append({"subset": "mean", "score": mean, "prompts": sum(int(row["prompts"]) for row in rows)})
    return rows


def _curve(found: Comparisons, total: dict[int, float], gold: dict[int, float]) -> Iterator[dict[str, Any]]:
    groups: dict[int, list[int]] = {}
    for place in gold:
        if np.isfinite(total.get(place, np.nan)) and np.isfinite(gold[place]):
            groups.setdefault(group_of(found, place), []).append(place)
    proxy = [np.array([total[place] for place in group]) for group in groups.values()]
    worth = [np.array([gold[place] for place in group]) for group in groups.values()]
    for n, value in measures.best_of_n(proxy, worth, SIZES).items():
        mine = measures.best_of_n(proxy, proxy, [n])[n]
        prompts = sum(len(group) >= n for group in groups.values())
        yield {"best_of": n, "kl": measures.divergence(n), "proxy": mine, "gold": value, "prompts": prompts}


def _worth(found: Comparisons) -> dict[int, float]:
    """What the judges think of an item: its rating, or else its share of won overall comparisons."""
    if found.ratings:
        return dict(found.ratings)
    shares: dict[int, list[float]] = {}
    for pair in found.pairs:
        if pair.aspect == found.pairs[-1].aspect:  # the overall verdict is the last one of a row
            shares.setdefault(pair.a, []).append(pair.p)
            shares.setdefault(pair.b, []).append(1 - pair.p)
    return {place: float(np.mean(won)) for place, won in shares.items()}


def _extent(found: Comparisons, place: int) -> float:
    """How much there is of a sample: words, bytes as PNG, frames."""
    _, media = found.load([place])
    track = media[found.kind]
    return MEDIA[found.kind].extent(track.row(0), track.rate)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}


# ---- genalign eval-reward -------------------------------------------------------------------------------------------


def evaluate_file(reward: str, data: Path, against: str | None, batch_size: int, as_json: bool) -> int:
    """Evaluate a reward and print the rows; the exit code."""
    built = _built(reward)
    found = read_judged(data, built)
    rows = evaluate_reward(built, found, against, batch_size)
    return print_report(rows, f"{reward} on {data} ({found.form})", as_json)


def print_report(rows: Sequence[dict[str, Any]], title: str, as_json: bool = False) -> int:
    """Print rows of `report` as tables, or one JSON object a line; 1 where nothing was scored, else 0."""
    if as_json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        _print_tables(rows, title)
    verdicts = [row for row in rows if "aspect" in row]
    if verdicts:
        return int(all(row["unscored"] == row["pairs"] for row in verdicts))
    return int(any(row["unscored"] == row["samples"] for row in rows if "failed" in row))  # ratings alone


def _print_tables(rows: Sequence[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    print(title)
    agreed = [row for row in rows if "aspect" in row]
    if agreed:  # many numbers and few aspects: numbers go down
        table = Table("", *(row["aspect"] for row in agreed))
        for name in list(agreed[0])[1:]:
            table.add_row(name, *(_cell(row[name]) for row in agreed))
        console.print(table)
    for head in ("judged", "subset", "against", "best_of"):
        mine = [row for row in rows if head in row]
        if mine:
            table = Table(*mine[0])
            for row in mine:
                table.add_row(*(_cell(row.get(name)) for name in mine[0]))
            console.print(table)
    for row in rows:
        if "failed" in row:
            counts = f"it abstained from {row['abstained']} and failed on {row['failed']}"
            print(f"{row['unscored']} of {row['samples']} samples have no score: {counts}")
        elif "error" in row:
            print(f"failed on {row['samples']}: {row['error']}")
        elif "truncated" in row:
            print(f"{row['truncated']} read only the beginning of the text of {row['samples']} samples")


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
