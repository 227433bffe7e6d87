"""Leave-one-out and swap credit of the Frechet distance against one full computation a row.

tests/reward/sets/test_frechet.py counts the operations at n = d = 512 and compares the values; `python -m
tests.bench.test_bench_frechet` prints both counts and CPU seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from genalign.reward.sets.frechet import Frechet, Moments
from tests.bench.meter import in_turns
from tests.helpers.feature_sets import Operations, rows


def compared(count: int, dims: int, rounds: int = 1) -> dict[str, dict[str, float]]:
    """Of each kind of credit for `count` rows: its operations and CPU seconds as shares of `count` computations."""
    distance, x, others = Frechet(Moments.of(rows(4 * dims, dims, 1))), rows(count, dims, 2), rows(count, dims, 3)
    kinds: dict[str, Callable[[], Any]] = {
        "leave one out": lambda: distance.leave_one_out(x),
        "swap": lambda: distance.swapped(x, others),
    }

    def one() -> Any:
        return distance.value(x[1:])

    def operations(work: Callable[[], Any]) -> float:
        with Operations() as counted:
            work()
        return counted.total

    told = {}
    for name, work in kinds.items():
        spent = in_turns(rounds, credit=work, one=one)
        told[name] = {
            "operations": operations(work) / (count * operations(one)),
            "seconds": min(spent["credit"]) / (count * min(spent["one"])),
        }
    return told


def test_the_share_falls_with_the_number_of_rows() -> None:
    """In operations, which are exact: what all rows share is paid once."""
    few, many = compared(16, 32), compared(64, 32)
    for name in few:
        assert 2 * many[name]["operations"] < few[name]["operations"] < 1


def main() -> None:
    torch.set_num_threads(1)
    print("credit of n = 512 rows in d = 512 by the Frechet distance, as a share of 512 full computations")
    for name, shares in compared(512, 512, rounds=3).items():
        print(f"{name:<14} operations 1/{1 / shares['operations']:.0f}   CPU seconds 1/{1 / shares['seconds']:.0f}")


if __name__ == "__main__":
    main()
