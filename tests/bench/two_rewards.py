"""Two conflicting rewards of pictures, strong colours and light: training by them, and what their samples cover."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from genalign import build, load_recipe, start, train
from genalign.method.pareto import tag_prompts
from genalign.types import Prompt

REWARDS = ("colourful", "light")  # a white picture has no colour, a colourful one is not white
TAGS = {"colourful": "<1>", "light": "<2>"}
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
    """The recipe, with its policy trained, if by any steps."""
    folder.mkdir(exist_ok=True)
    built = build(load_recipe("image-flow-grpo", [*overrides, f"train.steps={max(steps, 1)}", "eval=null"]))
    if steps == 0:
        return built
    progress = start(built.policy, built.reward, built.recipe.train)
    prompts_per_step = built.recipe.data.prompts_per_step
    for log in train(progress, built.method, lambda step: built.data.draw(step, prompts_per_step, 0), folder):
        print(f"  step {log['step']:.0f} reward {log['reward']:.4f} {log['step_time']:.1f} s", flush=True)
    return built


def batches(
    built: Any, prompts: list[Prompt], tags: list[str], weights: Any, reward: Any = None, steps: int | None = 10
) -> Tensor:
    """(P,SAMPLES,2): both rewards of samples of each prompt, which share the tags evenly; by `reward`, or the run's own
    one. steps: of sampling; None: the recipe's."""
    each = SAMPLES // max(1, len(tags))
    tagged, plain, _ = tag_prompts(prompts, tags)
    asked, judged = ([prompt for prompt in which for _ in range(each)] for which in (tagged, plain))
    with built.policy.weights(weights):
        media = built.policy.generate(asked, list(range(len(asked))), guidance=1.0, steps=steps)
    scores = (reward or built.reward)(judged, media)
    columns = [scores.names.index(name) for name in REWARDS]
    return scores.values[:, columns].view(len(prompts), SAMPLES, 2)
