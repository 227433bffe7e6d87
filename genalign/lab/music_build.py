"""tiny-music from nothing: its stages one after another, each measured."""

from functools import partial
from pathlib import Path
from typing import Any

from genalign.lab.bank import latent_bank
from genalign.lab.melody import web_caption
from genalign.lab.music import PIECES, assemble
from genalign.lab.music_autoencoder import build_autoencoder
from genalign.lab.music_figures import played_right, reconstructed_right
from genalign.lab.music_reading import build_text_tower
from genalign.lab.stages import Reached, Stages, train_stages

LENGTHS = Stages(autoencoder=1_500, samples=32_768, trajectories=3_072, rows=32)


def build_music(work: Path, stages: Stages = LENGTHS) -> tuple[Any, Reached]:
    """Train tiny-music; returns the pipeline and what each stage reached; each stage goes on from its checkpoint in
    `work`.

    autoencoder: what rendered pieces are made of. read: a new tower learns to tell what a caption says. Then the
    transformer's stages.
    """
    work.mkdir(parents=True, exist_ok=True)
    reached = Reached()
    vae = build_autoencoder(stages.autoencoder)
    reached["autoencoder"] = reconstructed_right(vae, stages.prompts)
    bank = latent_bank(vae, work, "melodies", stages.samples)
    tower, tokenizer, share = build_text_tower(work, stages.read, rows=min(64, 2 * stages.rows))
    reached["read"] = {"held-out captions": share}
    pipeline = assemble(vae, tower, tokenizer)
    seen = partial(played_right, pipeline, count=stages.prompts)
    train_stages(pipeline, bank, work, stages, PIECES, web_caption, seen, reached)
    return pipeline, reached
