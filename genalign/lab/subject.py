"""A sprite that no model of the lab has seen, for recipe image-subject: the cat in blue."""

import json
from pathlib import Path

import numpy as np
import torch

from genalign.lab.blobs import boxes, crop, segment
from genalign.lab.sprites import resized, sprites
from genalign.lab.world import BACKGROUNDS, SIZE
from genalign.media.image import save_png

NAME, KIN = "blue cat", "cat"
SHOWN = ("white", "green", "pink", "gray")  # backgrounds of the given pictures; the others are held out
PICTURES = 12
FAR = 0.3  # mean colour distance at which a likeness is worth nothing
WHERE = ("left of", "right of", "above", "below", "and")


def subject(size: int) -> np.ndarray:
    """(size, size, 4) in [0, 1], premultiplied: the cat with red and blue exchanged."""
    return resized(KIN, size)[..., [2, 1, 0, 3]]


def picture(background: str, rng: np.random.Generator) -> np.ndarray:
    """(64, 64, 3) in [0, 1]: the subject alone, somewhere."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = np.asarray(BACKGROUNDS[background], np.float32) / 255
    size = int(rng.integers(28, 41))
    left, top = rng.integers(1, SIZE - size, size=2)
    window, sprite = image[top : top + size, left : left + size], subject(size)
    window *= 1 - sprite[..., 3:]
    window += sprite[..., :3]
    return image.clip(0, 1)


def build_subject(folder: Path, seed: int = 40) -> None:
    """00.png ... with train.jsonl, rows {prompt, image}; and heldout.jsonl, prompts of other places and company."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(PICTURES):
        background = SHOWN[k % len(SHOWN)]
        save_png(torch.from_numpy(picture(background, rng)).permute(2, 0, 1), folder / f"{k:02}.png")
        opening = ("a", "a picture of a", "an image with a")[k // len(SHOWN)]
        rows.append({"prompt": f"{opening} {NAME} on a {background} background", "image": f"{k:02}.png"})
    held_out = [{"prompt": f"a {NAME} on {background}"} for background in BACKGROUNDS]
    others = [name for name in sprites() if name != KIN]
    for k, name in enumerate(rng.permutation(others)):
        article = "an" if name[0] in "aeiou" else "a"
        held_out.append({"prompt": f"a {NAME} {WHERE[k % len(WHERE)]} {article} {name}"})
    for name, written in (("train", rows), ("heldout", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))


def likeness(image: np.ndarray) -> float:
    """How like the subject the likest thing in a (64, 64, 3) image is, in [0, 1], by colour; no network."""
    ground, strength = segment(image)
    sprite = subject(16)
    drawn = sprite[..., :3] + (1 - sprite[..., 3:]) * ground
    near = (1 - np.abs(drawn - crop(image, ground, box)).mean() / FAR for box in boxes(strength))
    return max((float(max(0.0, value)) for value in near), default=0)
