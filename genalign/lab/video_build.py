"""tiny-video from nothing: its stages one after another, each measured."""

from functools import partial
from pathlib import Path
from typing import Any

from genalign.lab.bank import joined, latent_bank
from genalign.lab.moves import web_caption
from genalign.lab.moves_reading import build_text_tower
from genalign.lab.stages import AS_SHIPPED, Reached, Stages, train_stages
from genalign.lab.video import CLIPS, assemble
from genalign.lab.video_autoencoder import build_autoencoder, measure_latents
from genalign.lab.video_figures import drawn_right, reconstructed_right


def build_video(work: Path, stages: Stages = AS_SHIPPED) -> tuple[Any, Reached]:
    """Train tiny-video; returns the pipeline and what each stage reached. About two and a half hours of one
    core, of which the capable stage takes one; each stage goes on from its checkpoint in `work`.

    autoencoder: reconstruction of rendered clips. read: a new tower learns to tell what a caption says. Then the
    transformer's stages, with two objects in nearly half of the clips: with one in seven, as they come, a transformer
    that draws nine clips of one object right draws none of two.
    """
    reached = Reached()
    vae = build_autoencoder(work, stages.autoencoder, rows=max(1, stages.rows // 6))
    reached["autoencoder"] = reconstructed_right(vae, stages.prompts)
    moves = latent_bank(vae, work, "moves", stages.samples)
    measure_latents(vae, moves.latents)
    bank = joined(moves, latent_bank(vae, work, "pairs", stages.samples // 2))
    tower, tokenizer, share = build_text_tower(work, stages.read, rows=min(64, stages.rows + 16))
    reached["read"] = {"held-out captions": share}
    pipeline = assemble(vae, tower, tokenizer)
    seen = partial(drawn_right, pipeline, count=stages.prompts)
    train_stages(pipeline, bank, work, stages, CLIPS, web_caption, seen, reached)
    return pipeline, reached
