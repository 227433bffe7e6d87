"""The second edition of tiny-flow, from nothing: its stages one after another, each measured."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from genalign.lab.bank import joined, latent_bank
from genalign.lab.drawn import kinds_right
from genalign.lab.few_steps import distil_steps, trajectories
from genalign.lab.flow import assemble
from genalign.lab.flow_matching import even, match, true_caption
from genalign.lab.reading import teach_reading
from genalign.lab.world import DISTRACTED, web_caption

Figures = dict[str, dict[str, Any]]  # by stage and sampler: what the held-out judge sees right, by kind of fact


@dataclass(frozen=True)
class Stages:
    """How long each stage is: optimizer steps, and scenes or trajectories of its bank."""

    pretrain: int = 12_000
    read: int = 1_600
    capable: tuple[int, ...] = (3_600, 8_000, 7_000)  # of each round
    half_hearted: int = 300
    few_steps: int = 700
    scenes: int = 24_576
    trajectories: int = 4_608
    guidance: float = 3.0  # the half-hearted model's best, which is distilled
    prompts: int = 512  # held-out ones, on which each stage is measured
    rows: int = 48


def build_flow(work: Path, vae: Any, stages: Stages = Stages()) -> tuple[Any, Figures]:
    """Train tiny-flow; returns the pipeline and what each stage reached. About nine hours of one core; each stage goes
    on from its checkpoint in `work`.

    pretrain: web-like captions, read by the tower of tiny-clip. read: the tower learns to tell what a caption says.
    capable: true captions, with scenes that teach number, in rounds of a learning rate that falls to zero.
    half-hearted: captions that contradict what is to be aligned. few steps: guidance and ten steps distilled into three
    (PeRFlow).
    """
    pipeline, figures = assemble(vae), dict[str, dict[str, Any]]()
    world = latent_bank(vae, work, "world", stages.scenes)
    counting = [latent_bank(vae, work, "counting", stages.scenes, seed) for seed in (2, 4)]
    fitted = partial(match, pipeline, rows=stages.rows)
    seen = partial(kinds_right, pipeline, count=stages.prompts)

    fitted(world, web_caption, work / "flow.safetensors", steps=stages.pretrain, learning_rate=1.2e-3, seed=3)

    read = teach_reading(pipeline.text_encoder, pipeline.tokenizer, work, steps=stages.read)
    figures["read"] = {"held-out captions": read}

    banks = (joined(world, counting[0]), joined(world, counting[0]), joined(world, *counting))
    rates = (6e-4, 8e-4, 8e-4)
    for index, (steps, rate, bank) in enumerate(zip(stages.capable, rates, banks, strict=True)):
        state = work / f"capable-{index + 1}.safetensors"
        fitted(bank, true_caption, state, steps=steps, learning_rate=rate, seed=5 + 10 * index)
    figures["capable"] = seen(guidance=stages.guidance, steps=10, sigmas=even(10))

    distracted = partial(web_caption, shares=DISTRACTED)
    fitted(
        world, distracted, work / "half-hearted.safetensors", steps=stages.half_hearted, learning_rate=4e-4, seed=7,
        ema_decay=0.99,
    )  # fmt: skip
    figures["half-hearted"] = seen(guidance=stages.guidance, steps=10, sigmas=even(10))

    paths, captions = trajectories(pipeline, work, stages.trajectories, stages.guidance)
    distil_steps(pipeline, paths, captions, work, steps=stages.few_steps, rows=stages.rows)
    for steps in (3, 10):
        figures[f"few steps, {steps}"] = seen(guidance=1.0, steps=steps, sigmas=even(steps))
    return pipeline, figures
