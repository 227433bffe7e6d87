"""Parrot against weighted sums at equal samples: the hypervolume of their batches under two conflicting rewards.

`python -m tests.bench.test_bench_pareto` trains the four models and prints the table; about 40 minutes of one core.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign import build, load_recipe, start, train
from genalign.evaluation.intervals import compare
from genalign.method.pareto import tag_prompts
from genalign.types import Prompt

REWARDS = ("colourful", "light")  # a white picture has no colour, a colourful one is not white
TAGS = {"colourful": "<1>", "light": "<2>"}
WEIGHTS = (0.2, 0.5, 0.8)  # of the first reward, with 1 minus it for the second
PROMPTS = "data.prompts=emojiworld/train-open.jsonl"  # no background is told, and it decides both rewards
SAMPLES = 8  # of a prompt, in a batch whose hypervolume is taken


def reward_of(weights: tuple[float, float]) -> str:
    parts = [{"use": f"picture_rules.py:{name}", "weight": w} for name, w in zip(REWARDS, weights, strict=True)]
    return f"reward={json.dumps({'sum': parts, 'name': 'both'})}"


def parrot(group: int) -> str:
    return f"method={json.dumps({'name': 'parrot', 'group': group, 'tags': TAGS, 'keep': 0.5, 'signal': 'advantage'})}"


def hypervolume(points: Tensor, worst: Tensor) -> float:
    """Area that points (N,2) dominate above `worst` (2,), more being better."""
    import moocore

    return float(moocore.hypervolume(points.double().numpy(), ref=worst.double().numpy(), maximise=True))


def trained(overrides: list[str], steps: int, folder: Path) -> Any:
    """The recipe, with its policy trained."""
    folder.mkdir()
    built = build(load_recipe("image-flow-grpo", [*overrides, f"train.steps={steps}", "eval=null"]))
    progress = start(built.policy, built.reward, built.recipe.train)
    prompts_per_step = built.recipe.data.prompts_per_step
    for log in train(progress, built.method, lambda step: built.data.draw(step, prompts_per_step, 0), folder):
        print(f"  step {log['step']:.0f} reward {log['reward']:.4f} {log['step_time']:.1f} s", flush=True)
    return built


def batches(built: Any, prompts: list[Prompt], tags: list[str], weights: Any) -> Tensor:
    """(P,SAMPLES,2): both rewards of samples of each prompt, which share the tags evenly."""
    each = SAMPLES // max(1, len(tags))
    tagged, plain, _ = tag_prompts(prompts, tags)
    asked, judged = ([prompt for prompt in which for _ in range(each)] for which in (tagged, plain))
    with built.policy.weights(weights):
        media = built.policy.generate(asked, list(range(len(asked))), guidance=1.0, steps=10)
    scores = built.reward(judged, media)
    columns = [scores.names.index(name) for name in REWARDS]
    return scores.values[:, columns].view(len(prompts), SAMPLES, 2)


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
