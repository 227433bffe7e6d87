"""tiny-music with weights that nobody trained, as its builder saves it, while it is not shipped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from genalign.files.shipped import holds_model, shipped
from tests.helpers.tiny_videos import trained


def _music(room: Path) -> Any:
    from genalign.lab.music import assemble, autoencoder
    from genalign.lab.music_reading import build_text_tower

    tower, tokenizer, _ = build_text_tower(room, steps=0)
    pipeline = assemble(autoencoder(), tower, tokenizer)
    trained(lambda: pipeline.transformer)()
    return pipeline


MODELS = {"tiny-music": _music}


@cache
def built_model(name: str) -> Path:
    """A model of MODELS where it is shipped, or else a folder of its classes and sizes, made once."""
    built = shipped("assets", name)
    return built if holds_model(built) else _untrained(name)


def _untrained(name: str) -> Path:
    from genalign.lab.build import _save_pipeline

    room = Path(mkdtemp())
    _save_pipeline(MODELS[name](room), room / name)
    return room / name
