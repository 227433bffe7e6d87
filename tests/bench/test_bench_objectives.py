"""Ways to serve two rewards at once, at equal samples: the hypervolume of their samples of held-out prompts.

`python -m tests.bench.test_bench_objectives [FOLDER] [STEPS]` trains the models, weighted sum, GDPO, dynamic weights, a
constraint, Pareto fronts and Parrot, and prints the table: 24 steps take about five minutes of one core. FOLDER
keeps what is measured, plan by plan, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from genalign.data.prompts import read_prompts
from genalign.evaluation.intervals import compare
from genalign.files.atomic import replace_file
from genalign.files.shipped import shipped
from genalign.reward import build_reward
from genalign.types import Prompt, Weights
from tests.bench.two_rewards import PROMPTS, REWARDS, SAMPLES, TAGS, batches, hypervolume, parrot, reward_of, trained

PARTS = [{"use": f"picture_rules.py:{name}"} for name in REWARDS]
LEAST = 0.6  # of light, which a constraint asks for; the base has 0.57
SUM = reward_of((0.5, 0.5))


def by(reward: Any, **method: Any) -> list[str]:
    """Overrides of the recipe."""
    first = reward if isinstance(reward, str) else f"reward={json.dumps(reward)}"
    return [first, *(f"method.{key}={value}" for key, value in method.items())]


PLANS: dict[str, list[str]] = {
    "weighted sum": by(SUM),
    "GDPO": by(SUM, advantage="normalise_then_sum", std="group"),
    "dynamic weights, by hypervolume": by({"dynamic": PARTS, "by": "hypervolume", "name": "both"}, std="none"),
    "constraint: light": by(
        {"sum": [PARTS[0], {"constraint": PARTS[1], "at_least": LEAST}], "name": "both"},
        advantage="lagrangian",
        std="group",
    ),
    "Pareto fronts": by(SUM, advantage="pareto", std="group"),
    "Parrot": [SUM, parrot(16), "data.prompts_per_step=4"],
}


def held_out(count: int) -> list[Prompt]:
    """Prompts of combinations that are never trained on, without the background that decides both rewards."""
    rows = read_prompts(shipped("assets") / "emojiworld" / "heldout.jsonl").rows
    return [prompt for prompt in rows if prompt.facts.get("background") is None][:count]


def volumes(points: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """(P,) of each plan: what its samples of a prompt dominate above the base's worst value of either reward."""
    worst = points["base"].flatten(0, 1).amin(0)
    return {name: np.array([hypervolume(each, worst) for each in found]) for name, found in points.items()}


def measured(plans: dict[str, list[str]], steps: int, prompts: list[Prompt], folder: Path) -> dict[str, Tensor]:
    """(P,SAMPLES,2) of the base and of each plan: both rewards of samples of each prompt; read where they are."""
    points: dict[str, Tensor] = {}
    both = build_reward({"sum": PARTS}, Path())
    for name, own in {"base": by(SUM), **plans}.items():
        file = folder / f"{re.sub('[^a-z]+', '-', name.lower())}-{steps}-{len(prompts)}.safetensors"
        if not file.is_file():
            print(name, flush=True)
            built = trained([PROMPTS, *own], 0 if name == "base" else steps, folder / f"run-{file.stem}")
            tags = list(TAGS.values()) if name == "Parrot" else []
            averaged: Weights = "ema" if built.recipe.train.ema is not None else "policy"
            found = batches(built, prompts, tags, "reference" if name == "base" else averaged, both, None)
            replace_file(file, save({"points": found.contiguous()}))
        points[name] = load_file(file)["points"]
    return points


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_can_be_measured(name: str, tmp_path: Path) -> None:
    few = ["data.prompts_per_step=2", "policy.batch_size=8", "policy.sampler.steps=3", "policy.sampler.sigmas=null"]
    group = [] if name == "Parrot" else ["method.group=4"]
    own = [word.replace('"group": 16', '"group": 4') for word in PLANS[name]]
    points = measured({name: [*own, *group, *few]}, 1, held_out(2), tmp_path)
    assert measured({name: [*own, "policy.model=nowhere"]}, 1, held_out(2), tmp_path).keys() == points.keys()  # read
    assert points[name].shape == points["base"].shape == (2, SAMPLES, 2)
    assert torch.isfinite(points[name]).all()
    assert all((volume >= 0).all() for volume in volumes(points).values())


def main(folder: str = "runs/objectives", steps: int = 24, prompts: int = 64) -> None:
    torch.set_num_threads(1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    points = measured(PLANS, steps, held_out(prompts), Path(folder))
    found = volumes(points)
    print(f"hypervolume of {SAMPLES} samples of each of {prompts} held-out prompts, after {steps} steps, seed 0")
    print(f"| trained by | hypervolume | over the weighted sum, 95% | {', '.join(REWARDS)} |\n|---|---|---|---|")
    for name, volume in found.items():
        lead = compare(found["weighted sum"], volume)
        assert lead is not None
        means = ", ".join(f"{value:.3f}" for value in points[name].flatten(0, 1).mean(0))
        print(f"| {name} | {volume.mean():.4f} | {lead['ci95'][0]:+.4f} to {lead['ci95'][1]:+.4f} | {means} |")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
