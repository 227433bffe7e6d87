"""What prompts bring beside their text reaches the arguments that a pipeline has for it, or is one sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from genalign.policy.inputs import Inputs
from genalign.policy.tracks import Tracks
from genalign.types import Media, Prompt, Track, UsageError


def inputs(call: Any) -> Inputs:
    """Those of a pipeline of images whose __call__ is `call`."""
    kind = type("MadeOfParts", (SimpleNamespace,), {"__call__": call})
    return Inputs(Tracks(kind(components={}, image_processor=VaeImageProcessor()), {}))


def test_input_media_that_do_not_fit_are_one_sentence() -> None:
    made = inputs(lambda self, prompt, image=None: None)
    square, wide = (Media(image=Track(torch.zeros(1, 3, 8, width))) for width in (8, 16))
    assert made([Prompt("a")]) == {}
    assert [image.size for image in made([Prompt("a", wide)])["image"]] == [(16, 8)]
    with pytest.raises(UsageError, match="must all bring image, or none of them; prompt 1 differs"):
        made([Prompt("a", square), Prompt("b", uid=1)])
    with pytest.raises(UsageError, match="must have one size"):
        made([Prompt("a", square), Prompt("b", wide, uid=1)])
    both = Media(image=Track(torch.zeros(2, 3, 8, 8)))
    with pytest.raises(UsageError, match="takes one image and no last_image"):
        made([Prompt("a", both)])
    clip = Media(video=Track(torch.zeros(1, 5, 3, 8, 8), 8.0))
    with pytest.raises(UsageError, match="takes no video"):
        made([Prompt("a", clip)])
    reads = inputs(lambda self, prompt, video=None: None)
    assert [len(frames) for frames in reads([Prompt("a", clip)])["video"]] == [5]
    longer = Media(video=Track(torch.zeros(1, 9, 3, 8, 8), 8.0))
    with pytest.raises(UsageError, match=r"one size, not 5 frames of \(8, 8\) and 9 frames of \(8, 8\)"):
        reads([Prompt("a", clip), Prompt("a", longer)])
    with pytest.raises(UsageError, match="takes no image"):
        inputs(lambda self, prompt: None)([Prompt("a", square)])
