"""What tiny-music's stages are measured by: the held-out judge of sounds where it is built, and the rule verifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.files.shipped import shipped
from genalign.lab.drawn import heldout_prompts, shares_right
from genalign.lab.melody_bank import RATE
from genalign.lab.melody_figure import draw_spectrograms
from genalign.lab.melody_pieces import arrange, render
from genalign.lab.melody_verifier import ASPECTS, verify
from genalign.lab.music import CALL, SOUND_RATE
from genalign.lab.music_autoencoder import reconstructed
from genalign.lab.music_judge import MusicJudge
from genalign.lab.video_figures import JUDGE, RULE, Figures
from genalign.media.audio import write
from genalign.media.resample import resampled
from genalign.types import Media, Prompt, Track

BATCH = 64
SHEET = "played.png"  # in the folder of the model: what it plays, and beside it played-1.ogg, played-2.ogg, ...


def melody_prompts(count: int) -> list[Prompt]:
    return heldout_prompts(count, "melodyworld")


def right(prompts: Sequence[Prompt], waves: Tensor) -> Figures:
    """How much of the prompts' facts sounds (B, 1, 24576) show, where they are stated: shares of right ones by the
    judge; by the rule with partial credit, but for all_facts and whole."""
    figures: Figures = {}
    if (shipped("assets", "tiny-music-judge") / "model.safetensors").exists():
        figures[JUDGE] = shares_right(MusicJudge()(prompts, Media(audio=Track(waves, SOUND_RATE))))
    heard = [verify(wave, prompt.facts, SOUND_RATE) for wave, prompt in zip(waves.numpy(), prompts, strict=True)]
    scores = {aspect: np.array([row[aspect][0] for row in heard]) for aspect in ASPECTS}
    figures[RULE] = {aspect: float(np.nanmean(each)) for aspect, each in scores.items() if not np.isnan(each).all()}
    return figures


@torch.no_grad()
def played(pipeline: Any, prompts: Sequence[Prompt], guidance: float, steps: int) -> Tensor:
    """(B, 1, 24576) in [-1, 1]: one sound a prompt by the plain pipeline, seeds 0, 1, 2, ..."""
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, len(prompts), BATCH):
        texts = [prompt.text for prompt in prompts[start : start + BATCH]]
        seeds = [torch.Generator().manual_seed(start + row) for row in range(len(texts))]
        made = pipeline(
            texts, generator=seeds, guidance_scale=guidance, num_inference_steps=steps, output_type="pt", **CALL
        )
        parts.append(made.audios.float().clamp(-1, 1))
    return torch.cat(parts)


def played_right(pipeline: Any, guidance: float, steps: int, count: int) -> Figures:
    """Of held-out prompts, played by the plain pipeline."""
    prompts = melody_prompts(count)
    return right(prompts, played(pipeline, prompts, guidance, steps))


def play_sheet(pipeline: Any, folder: Path, count: int = 8) -> None:
    """The first held-out prompts in three steps, seeds 0, 1, 2, ...: as sounds, and as a picture of all."""
    prompts = melody_prompts(count)
    waves = played(pipeline, prompts, 1.0, 3)
    for number, wave in enumerate(waves, 1):
        write(wave, SOUND_RATE, folder / f"played-{number}.ogg")
    draw_spectrograms(list(waves[:, 0].numpy()), SOUND_RATE, [prompt.text for prompt in prompts], folder / SHEET)


def reconstructed_right(vae: Any, count: int, seed: int = 25) -> dict[str, Any]:
    """Of held-out pieces behind the autoencoder."""
    prompts, rng = melody_prompts(count), np.random.default_rng(seed)
    rendered = torch.from_numpy(np.stack([render(arrange(prompt.facts, rng)) for prompt in prompts]))
    waves = resampled(rendered, RATE, SOUND_RATE)
    return {**right(prompts, reconstructed(vae, waves).clamp(-1, 1))}
