"""What tiny-video's stages are measured by: the held-out judge of clips where it is built, and the rule verifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genalign.files.shipped import shipped
from genalign.lab.drawn import draw, heldout_prompts, shares_right
from genalign.lab.moves_clips import RATE, choreograph, contact_sheet, render
from genalign.lab.moves_judge import MovesJudge
from genalign.lab.moves_verifier import verify_batch
from genalign.lab.video import CALL
from genalign.lab.video_autoencoder import reconstructed
from genalign.types import Media, Prompt, Track

JUDGE, RULE = "judge", "rule"
SHEET = "drawn.webp"  # in the folder of the model: what it draws
Figures = dict[str, dict[str, Any]]  # by eye, JUDGE (where it is built) and RULE: shares right by aspect


def moves_prompts(count: int) -> list[Prompt]:
    return heldout_prompts(count, "emojimoves")


def right(prompts: Sequence[Prompt], clips: Tensor) -> Figures:
    """How much of the prompts' facts clips (B, 9, 3, 48, 48) in [0, 1] show, where they are stated. The judge's figures
    are shares of right ones; the rule's give partial credit, but for all_facts and whole."""
    figures: Figures = {}
    if (shipped("assets", "tiny-video-judge") / "model.safetensors").exists():
        figures[JUDGE] = shares_right(MovesJudge()(prompts, Media(video=Track(clips, RATE))))
    seen = verify_batch(clips.numpy(), [prompt.facts for prompt in prompts])
    figures[RULE] = {aspect: _mean(scores) for aspect, (scores, _) in seen.items()}
    return figures


def _mean(scores: np.ndarray) -> float:
    stated = scores[~np.isnan(scores)]
    return float(stated.mean()) if len(stated) else 0.0


def all_right(figures: Figures) -> float:
    """Share of prompts right as a whole: by the judge, or where there is none by the rule."""
    return float(figures.get(JUDGE, figures[RULE])["all_facts"])


def drawn_right(pipeline: Any, guidance: float, steps: int, count: int) -> Figures:
    """Of held-out prompts, drawn by the plain pipeline."""
    prompts = moves_prompts(count)
    with torch.no_grad():
        return right(prompts, draw(pipeline, prompts, guidance, steps, **CALL))


def draw_sheet(pipeline: Any, path: Path, count: int = 8) -> None:
    """A picture of the first held-out prompts, a row each: nine frames, in three steps, seeds 0, 1, 2, ..."""
    with torch.no_grad():
        clips = draw(pipeline, moves_prompts(count), 1.0, 3, **CALL)
    Image.fromarray(contact_sheet(list(clips.numpy()))).save(path, quality=90)


def reconstructed_right(vae: Any, count: int, seed: int = 15) -> dict[str, Any]:
    """Of held-out clips behind the autoencoder; and their PSNR."""
    prompts, rng = moves_prompts(count), np.random.default_rng(seed)
    clips = np.stack([render(choreograph(prompt.facts, rng), rng) for prompt in prompts])
    decoded, decibels = reconstructed(vae, torch.from_numpy(clips).transpose(1, 2).mul(2).sub(1))
    return {"psnr": decibels, **right(prompts, decoded.transpose(1, 2).add(1).div(2))}
