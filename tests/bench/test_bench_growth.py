"""How a training step grows with sampling steps, samples a prompt, resolution and the number of rewards.

`python -m tests.bench.test_bench_growth` prints the table. What frames cost is in test_bench_memory, what a vocabulary
costs in test_bench_language.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.method import MethodSettings, build_method
from genalign.reward import Runner, Sum
from genalign.types import Media, Prompt, Scores
from tests.bench.bare import PROMPTS, made
from tests.bench.live import live
from tests.bench.meter import Rows, metered
from tests.helpers.toy_policy import ToyReward, make_scores

PLAIN: dict[str, Any] = {"steps": 4, "group": 2, "size": 16, "rewards": 1}
SWEEPS: dict[str, Sequence[int]] = {
    "steps": (4, 8, 16),
    "group": (2, 4, 8),
    "size": (16, 32, 64),
    "rewards": (1, 4, 16),
}
ROWS = 4  # of a micro-batch


class Channel(ToyReward):
    """The mean of one colour channel, counted as it is asked."""

    aspects = ("a",)

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.name, self.calls = number, f"channel-{number}", 0

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        self.calls += 1
        return make_scores(media["image"].data[:, self.number % 3].mean((1, 2))[:, None])  # type: ignore[index, union-attr]


class Step:
    """A step of Flow-GRPO on two steps of a tiny rectified flow, as often as it is asked for."""

    def __init__(self, steps: int, group: int, size: int, rewards: int, width: int = 16, layers: int = 1) -> None:
        window = {"window": 2, "window_start": (1, 2)}
        self.policy = made(1.0, width, layers, ROWS, size, steps=steps, **window)
        self.channels = [Channel(number) for number in range(rewards)]
        self.reward = Runner(Sum(self.channels) if rewards > 1 else self.channels[0])
        self.method = build_method(MethodSettings(name="flow-grpo", group=group))
        self.number = 0

    def __call__(self) -> None:
        experience = self.method.collect(self.policy, PROMPTS, self.reward, 0, self.number)
        for loss in self.method.losses(self.policy, experience):
            loss.total.backward()
        for parameter in self.policy.named_trainable().values():
            parameter.grad = None
        self.number += 1


def counted(**changed: int) -> tuple[Rows, int]:
    """Passes of a step, and calls of its rewards."""
    step = Step(**{**PLAIN, **changed})
    step()
    before = sum(channel.calls for channel in step.channels)
    with metered(step.policy) as rows:
        step()
    return rows, sum(channel.calls for channel in step.channels) - before


def test_passes_grow_by_their_formula() -> None:
    """T + W (F + b) a sample, whatever the resolution and the rewards, each of which is called once."""
    for name, values in SWEEPS.items():
        for value in values[:2]:
            now = {**PLAIN, name: value}
            rows, calls = counted(**{name: value})
            samples = len(PROMPTS) * now["group"]
            assert (rows.plain, rows.graph, rows.b) == (now["steps"] * samples, 2 * samples, 2 * samples)
            assert calls == now["rewards"]


@pytest.mark.parametrize(("name", "most"), [("steps", 1.05), ("rewards", 1.05), ("group", 2.1)])
def test_the_bytes_at_the_peak_hardly_grow_with_steps_and_rewards(name: str, most: float) -> None:
    """Of a window of two steps nothing is kept of the others; of samples, their pixels and recorded latents."""
    peaks = []
    for value in SWEEPS[name][:2]:
        step = Step(**{**PLAIN, name: value})
        step()
        peaks.append(live(step)[0])
    assert peaks[1] <= most * peaks[0]


def main() -> None:
    torch.set_num_threads(1)
    print(f"a step of Flow-GRPO, {len(PROMPTS)} prompts, of 2 steps recorded; width 64, 4 layers; else {PLAIN}\n")
    print("| of | | passes forward | backward | bytes at the peak | CPU seconds | a sample, over the first |")
    print("|---|---|---|---|---|---|---|")
    for name, values in SWEEPS.items():
        first = 0.0
        for value in values:
            step = Step(**{**PLAIN, name: value}, width=64, layers=4)
            step()
            with metered(step.policy) as rows:
                peak = live(step)[0]
            begun = time.process_time()
            step()
            spent = time.process_time() - begun
            each = spent / (len(PROMPTS) * {**PLAIN, name: value}["group"])
            first = first or each
            cells = f"{rows.forward} | {rows.b} | {peak:,} | {spent:.2f} | {each / first:.2f}"
            print(f"| {name} | {value} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
