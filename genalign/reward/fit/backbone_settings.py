"""What a recipe of a fitted reward says under `backbone:`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class BackboneSettings(BaseModel):
    """What turns a sample into features. It stays as it is; only the head on it learns."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: Literal["clip", "text", "vlm"]
    """clip: an open_clip model, for images, and for videos as the mean of two frames a second; text: a language model
    or encoder of transformers; vlm: an image-text model of transformers."""
    model: str
    """A folder (relative to the recipe), a shipped asset or a hub id."""
    prompt: bool = True
    """Of clip: whether the features are of how the picture suits its prompt, or of the picture alone."""
    motion: bool = False
    """Of clip, for videos: besides what the frames show, how they change from one to the next (moving.py)."""
    words: int = Field(default=0, ge=0)
    """Of clip, for the head match: besides the prompt's embedding its words and neighbouring pairs of words, as a
    hashed count of this length, since CLIP's embeddings say little of verbs and order; 0: none."""
    template: str | None = None
    """Of text and vlm: what is read, with {prompt} and {text}, other braces as they are; null: all that there is."""
    pool: Literal["mean", "last", "token"] = "mean"
    """Of text and vlm, over the last hidden states: their mean, the last one, or the one at `token`."""
    token: str | None = None
    """Of pool token: a token that the tokenizer knows; it is put at the end where the text has none."""
    batch_size: int = Field(default=32, ge=1)
    """Samples a forward pass."""
