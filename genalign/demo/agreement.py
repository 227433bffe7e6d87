"""How far votes can be trusted: agreement between annotators, and whether one side of the screen is favoured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from genalign.demo.ranking import ranks_of
from genalign.demo.votes import Vote


@dataclass(frozen=True)
class Agreement:
    """alpha: Krippendorff's, 1 where all agree, 0 as by chance; None where no pair was judged twice.

    shared: pairs that several annotators judged. equal: of all two judgements of one pair by different annotators, the
    share that says the same; None without any.
    """

    alpha: float | None
    shared: int
    equal: float | None


@dataclass(frozen=True)
class PositionBias:
    """left of decided votes preferred the left side; p of a fair coin being at least as far from a half (two-sided)."""

    left: int
    decided: int
    p: float


def agreement(votes: Iterable[Vote]) -> Agreement:
    """Between annotators, on the last vote of each on each pair; skipped pairs are nobody's judgement."""
    last: dict[str, dict[str, str]] = {}
    for vote in votes:
        if vote.choice == "skip":
            continue
        decided, first = vote.decided, min(vote.left.file, vote.right.file)
        said = "tie" if decided is None else "first" if decided[0].file == first else "second"
        last.setdefault(vote.pair, {})[vote.annotator] = said
    units = [list(said.values()) for said in last.values()]
    together = equal = 0
    for unit in units:
        counts = Counter(unit)
        together += len(unit) * (len(unit) - 1)
        equal += sum(n * (n - 1) for n in counts.values())
    shared = sum(len(unit) > 1 for unit in units)
    return Agreement(krippendorff_alpha(units), shared, equal / together if together else None)


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """1 - observed / expected disagreement of nominal values; units: what was said of each thing, by however many.

    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section B and C. None where nothing was judged
    twice, 1 where only one value occurs.
    """
    paired = [unit for unit in units if len(unit) > 1]
    total = sum(len(unit) for unit in paired)
    if total == 0:
        return None
    differing = 0.0
    for unit in paired:
        counts = Counter(unit)
        differing += sum(n * (len(unit) - n) for n in counts.values()) / (len(unit) - 1)
    overall = Counter(value for unit in paired for value in unit)
    expected = sum(n * (total - n) for n in overall.values()) / (total - 1)
    return 1.0 - differing / expected if expected else 1.0


def position_bias(votes: Iterable[Vote]) -> PositionBias | None:
    """Of the pairs that were judged on the page, each by itself; None where none was decided."""
    from scipy.stats import binomtest

    alone = [vote for vote in votes if vote.seconds is not None and not vote.ranking]
    sides = [vote.choice for vote in alone if vote.decided is not None]
    if not sides:
        return None
    left = sides.count("left")
    return PositionBias(left, len(sides), float(binomtest(left, len(sides)).pvalue))


def best_places(votes: Iterable[Vote]) -> dict[int, int]:
    """How often the best sample of a ranking stood first (0) from the left, second (1), ...

    A ranking whose best place is shared counts for none.
    """
    together: dict[str, list[Vote]] = {}
    for vote in votes:
        if vote.ranking and vote.seconds is not None and vote.choice != "skip":
            together.setdefault(vote.ranking, []).append(vote)
    found: Counter[int] = Counter()
    for rows in together.values():
        ranks = ranks_of(rows)
        if ranks.count(1) == 1:
            found[ranks.index(1)] += 1
    return dict(sorted(found.items()))
