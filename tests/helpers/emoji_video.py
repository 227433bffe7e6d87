"""tiny-video with weights that nobody trained: what its builder saves, for where it is not shipped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from genalign.files.shipped import holds_model, shipped

MODEL = "tiny-video"


@cache
def video_model() -> Path:
    """tiny-video where it is shipped, or else a folder of its classes and sizes, made once."""
    built = shipped("assets", MODEL)
    return built if holds_model(built) else _untrained()


def _untrained() -> Path:
    from genalign.lab.build import _save_pipeline
    from genalign.lab.moves_reading import build_text_tower
    from genalign.lab.video import assemble, autoencoder

    room = Path(mkdtemp())
    tower, tokenizer, _ = build_text_tower(room, steps=0)
    _save_pipeline(assemble(autoencoder(), tower, tokenizer), room / MODEL)
    return room / MODEL
