"""Media in and out of files: one module a medium, and the table of them."""

from __future__ import annotations

from genalign.media import audio, image, text, video
from genalign.media.medium import Medium
from genalign.types import MODALITIES, Media

# What a sample mainly is comes first: a text beside a picture is what the picture was made of, a sound beside a video
# is its sound.
MEDIA: dict[str, Medium] = {"image": image, "video": video, "audio": audio, "text": text}
assert tuple(MEDIA) == MODALITIES


def leading(media: Media) -> str:
    """The modality that a sample mainly is: the first of MEDIA that it has."""
    return next(name for name in MEDIA if name in media)


def source(media: Media) -> str:
    """The modality in which siblings begin to differ: the text that a picture was made of, else `leading`."""
    return "text" if "text" in media else leading(media)
