"""What the algebra of rewards costs. `python -m tests.bench.test_bench_algebra` prints the table."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from genalign.fronts import front_ranks
from genalign.method.losses import advantages
from genalign.reward import Ensemble, FunctionReward, Gate, Geometric, MarginalGain, Pareto, Shape, Sum
from genalign.types import Media, Prompt, Track


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of one call, the fastest of `repeats`."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def sorting(rows: int, columns: int = 4, repeats: int = 3) -> float:
    """A non-dominated sort of one group."""
    values = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0))
    group = torch.zeros(rows, dtype=torch.long)
    return seconds(lambda: front_ranks(values, group), repeats)


def combining(rows: int, repeats: int = 3) -> dict[str, float]:
    """Scores and advantages of `rows` samples in groups of 16, the parts' own scores being at hand."""
    table = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))

    def part(k: int) -> FunctionReward:
        return FunctionReward(lambda media: table[:, k], name=f"p{k}")

    a, b, c = part(0), part(1), part(2)
    prompts, media = [Prompt("x", uid=i // 16) for i in range(rows)], Media(text=Track(["x"] * rows))
    group = torch.arange(rows) // 16
    rewards = {
        "sum": Sum([a, b, c]),
        "nested": Sum([Gate(Geometric([a, b]), Shape(c, "tanh")), (Ensemble([part(0), part(1)], "entropic"), 0.5)]),
        "marginal": MarginalGain([a, b, c]),
        "pareto": Pareto([a, b, c]),
    }
    return {
        name: seconds(lambda reward=reward: advantages(reward(prompts, media, group), group), repeats)  # type: ignore[misc]
        for name, reward in rewards.items()
    }


def test_the_table_can_be_measured() -> None:
    assert sorting(1000, repeats=1) > 0
    assert all(spent > 0 for spent in combining(64, repeats=1).values())


def main() -> None:
    torch.set_num_threads(1)
    print(f"CPU seconds, best of 3; non-dominated sort of 100,000 x 4: {sorting(100_000):.3f}")
    for name, spent in combining(4096).items():
        print(f"4,096 samples in groups of 16, {name}: {spent:.4f}")


if __name__ == "__main__":
    main()
