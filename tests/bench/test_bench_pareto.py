"""Parrot against weighted sums at equal samples: the hypervolume of their batches under two conflicting rewards.

`python -m tests.bench.test_bench_pareto` trains the four models and prints the table; about 40 minutes of one core.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genalign.evaluation.intervals import compare
from tests.bench.two_rewards import PROMPTS, REWARDS, SAMPLES, TAGS, batches, hypervolume, parrot, reward_of, trained

WEIGHTS = (0.2, 0.5, 0.8)  # of the first reward, with 1 minus it for the second


def test_hypervolume_is_an_area() -> None:
    worst = torch.zeros(2)
    assert hypervolume(torch.tensor([[1.0, 2.0]]), worst) == 2.0
    assert hypervolume(torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 0.5]]), worst) == 4.0
    assert hypervolume(torch.tensor([[-1.0, 2.0]]), worst) == 0.0


def test_the_table_can_be_measured(tmp_path: Path) -> None:
    few = ["data.prompts_per_step=2", "policy.batch_size=8", PROMPTS]
    built = trained([*few, parrot(4), reward_of((1.0, 1.0))], 1, tmp_path / "run")
    found = batches(built, list(built.data.draw(0, 3, 0)), list(TAGS.values()), "ema")
    assert found.shape == (3, SAMPLES, 2)
    assert torch.isfinite(found).all()


def main(steps: int = 48, prompts: int = 64) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        plans = {f"{w:g} {REWARDS[0]} + {1 - w:g} {REWARDS[1]}": [reward_of((w, 1 - w))] for w in WEIGHTS}
        plans["parrot"] = [reward_of((1.0, 1.0)), parrot(16), "data.prompts_per_step=4"]
        points: dict[str, Tensor] = {}
        for k, (name, own) in enumerate(plans.items()):
            print(name, flush=True)
            built = trained([PROMPTS, *own], steps, Path(folder) / f"run-{k}")
            asked = list(built.data.draw(10_000, prompts, 0))
            tags = list(TAGS.values()) if name == "parrot" else []
            if not points:
                points["base"] = batches(built, asked, [], "reference")
            points[name] = batches(built, asked, tags, "ema")
    worst = points["base"].flatten(0, 1).amin(0)
    volumes = {name: np.array([hypervolume(each, worst) for each in found]) for name, found in points.items()}
    print(f"hypervolume of {SAMPLES} samples of a prompt, mean of {prompts} prompts; Parrot's lead, 95% interval")
    for name, volume in volumes.items():
        lead = compare(volume, volumes["parrot"])
        assert lead is not None
        means = " ".join(f"{value:.3f}" for value in points[name].flatten(0, 1).mean(0))
        print(f"| {name} | {volume.mean():.4f} | {lead['ci95'][0]:+.4f} to {lead['ci95'][1]:+.4f} | {means} |")


if __name__ == "__main__":
    main()
