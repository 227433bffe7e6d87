"""tiny-video and its judge with weights that nobody trained: what their builders save, for where none is shipped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from genalign.files.shipped import shipped

MODEL, JUDGE = "tiny-video", "tiny-video-judge"


@cache
def video_model() -> Path:
    """tiny-video where it is shipped, or else a folder of its classes and sizes, made once."""
    built = shipped("assets", MODEL)
    return built if (built / "model_index.json").is_file() else _untrained()


@cache
def video_judge() -> Path:
    """The same of tiny-video-judge."""
    from genalign.lab.moves_judge import MovesNet, save_judge

    built = shipped("assets", JUDGE)
    if (built / "model.safetensors").is_file():
        return built
    torch.manual_seed(17)
    folder = Path(mkdtemp()) / JUDGE
    save_judge(MovesNet(), folder)
    return folder


def _untrained() -> Path:
    from genalign.lab.build import _save_pipeline
    from genalign.lab.moves_reading import build_text_tower
    from genalign.lab.video import assemble, autoencoder

    room = Path(mkdtemp())
    tower, tokenizer, _ = build_text_tower(room, steps=0)
    _save_pipeline(assemble(autoencoder(), tower, tokenizer), room / MODEL)
    return room / MODEL
