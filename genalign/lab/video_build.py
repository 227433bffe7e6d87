"""tiny-video from nothing: its stages one after another, each measured."""

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from genalign.lab.bank import latent_bank
from genalign.lab.few_steps import distil_steps, trajectories
from genalign.lab.flow_matching import match
from genalign.lab.moves import web_caption
from genalign.lab.moves_reading import build_text_tower
from genalign.lab.video import CLIPS, assemble, true_caption
from genalign.lab.video_autoencoder import build_autoencoder, measure_latents
from genalign.lab.video_figures import all_right, drawn_right, reconstructed_right

log = logging.getLogger("genalign.lab")
Stage = dict[str, Any]


@dataclass(frozen=True)
class Stages:
    """How long each stage is: optimizer steps, and clips or trajectories of its bank."""

    autoencoder: int = 4_000
    read: int = 1_600
    capable: tuple[int, ...] = (8_000,)  # of each round
    half_hearted: int = 300
    few_steps: int = 800
    clips: int = 49_152
    trajectories: int = 6_144
    guidance: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)  # scales the half-hearted model is measured at
    prompts: int = 512  # held-out ones, on which each stage is measured
    rows: int = 48  # captions of a batch; clips of the autoencoder's are a sixth


def build_video(work: Path, stages: Stages = Stages()) -> tuple[Any, dict[str, Stage]]:
    """Train tiny-video; returns the pipeline and what each stage reached. About three and a half hours of one core,
    half of them for the capable stage; each stage goes on from its checkpoint in `work`.

    autoencoder: reconstruction of rendered clips. read: a new tower learns to tell what a caption says. capable: true
    captions, in rounds of a learning rate that falls to zero. half-hearted: captions that contradict what is to be
    aligned. few steps: guidance, at the scale that is best for the half-hearted model, and nine steps distilled into
    three (PeRFlow).
    """
    figures: dict[str, Stage] = {}

    def reached(stage: str, measured: Stage) -> None:
        log.info("%s: %s", stage, measured)
        figures[stage] = measured

    vae = build_autoencoder(work, stages.autoencoder, rows=max(1, stages.rows // 6))
    reached("autoencoder", reconstructed_right(vae, stages.prompts))
    bank = latent_bank(vae, work, "moves", stages.clips)
    measure_latents(vae, bank[0])

    tower, tokenizer, share = build_text_tower(work, stages.read, rows=min(64, stages.rows + 16))
    reached("read", {"held-out captions": share})
    pipeline = assemble(vae, tower, tokenizer)
    fitted = partial(match, pipeline, bank, rows=stages.rows, world=CLIPS)
    seen = partial(drawn_right, pipeline, count=stages.prompts)

    for index, steps in enumerate(stages.capable):
        state, rate = work / f"capable-{index + 1}.safetensors", 8e-4 if index else 1.2e-3
        fitted(true_caption, state, steps=steps, learning_rate=rate, seed=5 + 10 * index)
    reached("capable", seen(guidance=2.0, steps=10))

    fitted(
        web_caption, work / "half-hearted.safetensors", steps=stages.half_hearted, learning_rate=4e-4, seed=7,
        ema_decay=0.99,
    )  # fmt: skip
    halves = {scale: seen(guidance=scale, steps=10) for scale in stages.guidance}
    for scale, half in halves.items():
        reached(f"half-hearted, guidance {scale:g}", half)
    best = max(halves, key=lambda scale: all_right(halves[scale]))

    taught = work / f"teacher-{_digest(pipeline.transformer)}-{best:g}"  # of another teacher no path is taken up
    taught.mkdir(exist_ok=True)
    paths, captions = trajectories(pipeline, taught, stages.trajectories, best, world=CLIPS)
    distil_steps(pipeline, paths, captions, taught, steps=stages.few_steps, rows=stages.rows, world=CLIPS)
    for steps in (3, 9):
        reached(f"few steps, {steps}", seen(guidance=1.0, steps=steps))
    return pipeline, figures


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:8]
