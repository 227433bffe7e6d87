"""`genalign eval-reward`: how well a reward agrees with judged samples, and how far it is from another reward."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genalign.data.comparisons import read_comparisons
from genalign.data.judged import Comparison, Comparisons
from genalign.files.places import find
from genalign.media import MEDIA
from genalign.reward import Runner, build_reward, check_needs
from genalign.reward.fit import measures
from genalign.reward.wrapper import with_defaults
from genalign.types import Reward, UsageError

SIZES = (1, 2, 4, 8, 16, 32, 64)
BIASES = ("position_bias", "order_flips")  # what judges of several samples at once say of their answers
TIES = "ties"  # the subset of RewardBench 2 with a score of its own
Sample = tuple[int, str]  # an item, and whose taste it is judged by


def evaluate_reward(args: Namespace) -> list[dict[str, Any]]:
    """Print what `report` says, as a table or as one JSON object a line."""
    found = read_comparisons(find(str(args.data), Path(), "assets") or args.data)
    reward = build_reward(args.reward, Path())
    other = None if args.against is None else build_reward(args.against, Path())
    for asked in (reward, *([other] if other is not None else [])):
        check_needs(asked, {found.kind, "prompt", "facts.user"})
    rows = report(reward, found, other, args.batch_size)
    if args.json:
        print("\n".join(json.dumps(row) for row in rows))
    else:
        _print(rows, f"{reward.name} on {args.data} ({found.form})")
    return rows


def report(reward: Reward, found: Comparisons, other: Reward | None = None, size: int = 64) -> list[dict[str, Any]]:
    """Rows of numbers, None where one says nothing.

    {"aspect"}: agreement with the verdicts, by the reward's aspect of that name or else its total: see `measures`;
    `unscored` pairs, which it abstained from or failed on, count nowhere. {"subset"}: RewardBench 2's scores, and their
    mean. {"best_of"}: what the best of n by this reward is worth to the judges (or to `other`), and its KL in nats.
    {"against"}: the STARC distance to `other`. {"judged"}: of a judge that is shown several samples at once, the mean
    bias towards the first, and the share of samples on which its two orders disagree.

    Raises:
        UsageError: the file has nothing that can be compared.
    """
    if not found.pairs and not found.ratings:
        raise UsageError(f"{found.source} holds no verdict; add some")
    personal = bool(with_defaults(reward).users)
    samples = _samples(found, personal)
    direct = with_defaults(reward).pairwise
    told = score(reward, found, samples, size)
    rows = []
    for aspect in dict.fromkeys(pair.aspect for pair in found.pairs):
        pairs = [pair for pair in found.pairs if pair.aspect == aspect]
        delta = _direct(reward, found, pairs, size) if direct else _leads(told, aspect, samples, pairs, personal)
        rows.append({"aspect": aspect, **agreement(found, pairs, delta)})
    biased = {name: told[name][np.isfinite(told[name])] for name in BIASES if name in told}
    if judged := max((len(values) for values in biased.values()), default=0):
        rows.append({"judged": judged, **{name: float(values.mean()) for name, values in biased.items()}})
    total = {place: float(told["total"][k]) for k, (place, _) in enumerate(samples)}
    rows += _subsets(found, total)
    gold: dict[int, float] = _worth(found)
    if other is not None:
        others = score(other, found, samples, size)["total"]
        gold = {place: float(others[k]) for k, (place, _) in enumerate(samples)}
        groups = np.array([_group(found, place) for place, _ in samples])
        both = np.isfinite(told["total"]) & np.isfinite(others)
        distance = measures.starc(told["total"][both], others[both], groups[both])
        rows.append({"against": other.name, "starc": distance, "samples": int(both.sum())})
    return [_plain(row) for row in [*rows, *_curve(found, total, gold)]]


def score(reward: Reward, found: Comparisons, samples: Sequence[Sample], size: int) -> dict[str, np.ndarray]:
    """Column -> (M,) scores, NaN where one may not be read; "total" among them. Siblings are scored together."""
    runner = Runner(reward, max_failure=1.0)
    columns = {name: np.full(len(samples), np.nan) for name in (*reward.aspects, "total")}
    order = sorted(range(len(samples)), key=lambda k: _group(found, samples[k][0]))
    for rows in _batches(found, samples, order, len(samples) if reward.looks_at == "batch" else size):
        prompts, media = found.load([samples[k][0] for k in rows], [samples[k][1] for k in rows])
        group = torch.tensor([_group(found, samples[k][0]) for k in rows])
        with torch.no_grad():
            scores = runner(prompts, media, group)
        for k, name in enumerate(scores.names):
            columns[name][rows] = np.where(scores.valid[:, k], scores.values[:, k].double(), np.nan)
        columns["total"][rows] = np.where(scores.total_valid, scores.total.double(), np.nan)
        for name in BIASES:
            if name in scores.info:
                said = [np.nan if value is None else float(value) for value in scores.info[name]]
                columns.setdefault(name, np.full(len(samples), np.nan))[rows] = said
    return columns


def agreement(found: Comparisons, pairs: Sequence[Comparison], delta: np.ndarray) -> dict[str, Any]:
    """How leads (N,), NaN where there is none, agree with the verdicts of pairs."""
    scored = np.isfinite(delta)
    h, lead = np.array([pair.p for pair in pairs])[scored], delta[scored]
    kept = [pair for pair, ok in zip(pairs, scored, strict=True) if ok]
    best, eps = measures.accuracy_with_ties(h, lead)
    ece, brier = measures.calibration(h, lead)
    sizes = {place: _extent(found, place) for place in {place for pair in kept for place in (pair.a, pair.b)}}
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
    told: dict[str, np.ndarray], aspect: str, samples: Sequence[Sample], pairs: Sequence[Comparison], personal: bool
) -> np.ndarray:
    column = told.get(aspect, told["total"])
    place = {sample: k for k, sample in enumerate(samples)}
    whose = [pair.user if personal else "" for pair in pairs]
    both = [(place[pair.a, user], place[pair.b, user]) for pair, user in zip(pairs, whose, strict=True)]
    return np.array([column[a] - column[b] for a, b in both])


def _direct(reward: Any, found: Comparisons, pairs: Sequence[Comparison], size: int) -> np.ndarray:
    """What a reward that compares two says of each pair."""
    leads = []
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
        listed = {
            x.name: (np.array([total[place] for place in (*x.right, *x.wrong)]), len(x.right))
            for x in found.listings
            if x.subset == subset
        }
        read = {name: row for name, row in listed.items() if np.isfinite(row[0]).all()}
        if subset.lower() == TIES:
            value = measures.ties_score(read)
        else:
            value = float(np.mean([measures.top_one(*row) for row in read.values()])) if read else measures.NOTHING
        rows.append({"subset": subset, "score": value, "prompts": len(read), "unscored": len(listed) - len(read)})
    if rows:
        mean = float(np.mean([row["score"] for row in rows]))
        rows.append({"subset": "mean", "score": mean, "prompts": sum(int(row["prompts"]) for row in rows)})
    return rows


def _curve(found: Comparisons, total: dict[int, float], gold: dict[int, float]) -> Iterator[dict[str, Any]]:
    groups: dict[int, list[int]] = {}
    for place in gold:
        if np.isfinite(total.get(place, np.nan)) and np.isfinite(gold[place]):
            groups.setdefault(_group(found, place), []).append(place)
    proxy, worth = ([np.array([of[p] for p in group]) for group in groups.values()] for of in (total, gold))
    for n, value in measures.best_of_n(proxy, worth, SIZES).items():
        mine = measures.best_of_n(proxy, proxy, [n])[n]
        prompts = len([group for group in groups.values() if len(group) >= n])
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


def _samples(found: Comparisons, personal: bool) -> list[Sample]:
    """What must be scored: every item, for a personal reward once for each user who judged it."""
    if not personal:
        return [(place, "") for place in range(len(found.items))]
    judged = {(place, pair.user): None for pair in found.pairs for place in (pair.a, pair.b)}
    return list(judged)


def _group(found: Comparisons, place: int) -> int:
    item = found.items[place]
    return found.group((item.prompt, "" if item.asked is None else str(item.asked)))


def _batches(found: Comparisons, samples: Sequence[Sample], order: Sequence[int], size: int) -> Iterator[list[int]]:
    """Rows in batches of at least `size`, none of which parts siblings."""
    rows: list[int] = []
    for k in order:
        if len(rows) >= size and _group(found, samples[k][0]) != _group(found, samples[rows[-1]][0]):
            yield rows
            rows = []
        rows.append(k)
    if rows:
        yield rows


def _extent(found: Comparisons, place: int) -> float:
    """How much there is of a sample: words, bytes as PNG, frames."""
    _, media = found.load([place])
    track = media[found.kind]
    return MEDIA[found.kind].extent(track.data[0], track.rate)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and value != value else value for name, value in row.items()}


def _print(rows: Sequence[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(title)
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


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
