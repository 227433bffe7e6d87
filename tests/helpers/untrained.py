"""tiny-music with weights that nobody trained, as its builder saves it, while it is not shipped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from genalign.files.shipped import holds_model, shipped
from tests.helpers.tiny_videos import trained


def _music() -> Any:
    from genalign.lab.music import assemble, autoencoder
    from genalign.lab.music_reading import TOKENS, captions
    from genalign.lab.reading import new_tower
    from genalign.lab.text import build_tokenizer

    # What of the words a tenth of the captions leaves out is spelled.
    tokenizer = build_tokenizer(lambda rng: captions(rng, 1, "train")[0][0].lower(), TOKENS, count=2000)
    pipeline = assemble(autoencoder(), new_tower(tokenizer, TOKENS, seed=22), tokenizer)
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
    _save_pipeline(MODELS[name](), room / name)
    return room / name
