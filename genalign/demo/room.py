"""What the pages of one server share; and gradio, imported once with its telemetry off."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from genalign.demo.align import Alignment
from genalign.demo.choice import of_pictures
from genalign.demo.deck import Deck
from genalign.demo.found import pictures_by_prompt
from genalign.demo.guide import guide_of
from genalign.demo.models import Models
from genalign.demo.vote import Booth
from genalign.demo.votes import Votes
from genalign.demo.works import Works
from genalign.types import UsageError

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and when a page is made
try:
    import gradio as gr
except ImportError as missing:
    raise UsageError("the demo needs gradio; pip install 'genalign[demo]'") from missing

__all__ = ["Room", "gr"]


@dataclass
class Room:
    """All that the pages of one server share. disputed: pairs are chosen by the disagreement about them (choice.py).
    pictures: a folder of pictures that were drawn elsewhere, to be voted on.

    Raises:
        UsageError: disputed, and the model makes no pictures; or as of `pictures_by_prompt`.
    """

    models: Models
    votes: Votes
    disputed: bool = False
    pictures: Path | None = None
    works: Works = field(default_factory=Works)

    def __post_init__(self) -> None:
        if self.disputed and self.models.modality != "image":
            raise UsageError(
                "pairs are chosen by features of pictures, which this model does not make; drop --disputed"
            )
        rank = of_pictures(self.votes) if self.disputed else None
        found = None if self.pictures is None else pictures_by_prompt(self.pictures)
        self.deck = Deck(self.models, self.votes, rank=rank, pictures=found)
        self.booth = Booth(self.deck, self.votes)
        self.alignment = Alignment(self.models, self.votes)
        self.guide = guide_of(self.models)
