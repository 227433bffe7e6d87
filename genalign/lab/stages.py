"""The stages of a flow model on clips or sounds, from its first caption on, one after another, each measured."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from genalign.lab.bank import Bank
from genalign.lab.few_steps import distil_steps, trajectories
from genalign.lab.flow_matching import Captioner, World, match
from genalign.lab.video_figures import Figures, all_right

log = logging.getLogger("genalign.lab")
Stage = dict[str, Any]
Seen = Callable[..., Figures]  # (guidance=, steps=): what held-out prompts show


@dataclass(frozen=True)
class Stages:
    """How long each stage is: optimizer steps, and samples or trajectories of its bank."""

    autoencoder: int = 6_000
    read: int = 4_600
    capable: tuple[int, ...] = (8_000,)  # of each round
    half_hearted: int = 300
    few_steps: int = 800
    samples: int = 49_152
    trajectories: int = 4_608
    guidance: tuple[float, ...] = (1.0, 2.0, 3.0)  # scales the half-hearted model is measured at
    prompts: int = 384  # held-out ones, on which each stage is measured
    rows: int = 48  # captions of a batch; samples of the autoencoder's are a sixth


AS_SHIPPED = Stages()


class Reached(dict[str, Stage]):
    """What each stage reached, logged as it comes."""

    def __setitem__(self, stage: str, measured: Stage) -> None:
        log.info("%s: %s", stage, measured)
        super().__setitem__(stage, measured)


def train_stages(
    pipeline: Any, bank: Bank, work: Path, stages: Stages, world: World, web_caption: Captioner, seen: Seen,
    reached: Reached,
) -> None:  # fmt: skip
    """Train the transformer of a pipeline whose autoencoder and text tower are done; each stage goes on from its
    checkpoint in `work`.

    capable: true captions, in rounds of a learning rate that falls to zero, by Muon: after 400 steps tiny-video's loss
    is 0.60 where AdamW's is 0.67. half-hearted: captions that contradict what is to be aligned. few steps: guidance, at
    the scale that is best for the half-hearted model, and nine steps distilled into three (PeRFlow).
    """
    fitted = partial(match, pipeline, bank, rows=stages.rows, world=world)
    for index, steps in enumerate(stages.capable):
        state, share = work / f"capable-{index + 1}.safetensors", 2 / 3 if index else 1.0
        fitted(world.caption, state, steps=steps, learning_rate=1.2e-3 * share, muon=0.02 * share, seed=5 + 10 * index)
    reached["capable"] = seen(guidance=2.0, steps=10)

    fitted(
        web_caption, work / "half-hearted.safetensors", steps=stages.half_hearted, learning_rate=4e-4, seed=7,
        ema_decay=0.99, world=replace(world, things=()),
    )  # fmt: skip
    halves = {scale: seen(guidance=scale, steps=10) for scale in stages.guidance}
    for scale, half in halves.items():
        reached[f"half-hearted, guidance {scale:g}"] = half
    best = max(halves, key=lambda scale: all_right(halves[scale]))

    taught = work / f"teacher-{_digest(pipeline.transformer)}-{best:g}"  # of another teacher no path is taken up
    taught.mkdir(exist_ok=True)
    paths, captions = trajectories(pipeline, taught, stages.trajectories, best, world=world)
    distil_steps(pipeline, paths, captions, taught, steps=stages.few_steps, rows=stages.rows, world=world)
    for steps in (3, 9):
        reached[f"few steps, {steps}"] = seen(guidance=1.0, steps=steps)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
