"""A policy that paints known grey levels."""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from genalign.types import Media, Prompt, Track

SCALES = [1.0, 2.0, 3.0]
GAIN = {"reference": {1.0: 0.1, 2.0: 0.3, 3.0: 0.2}, "policy": {1.0: 0.5, 2.0: 0.4, 3.0: 0.1}}
GAIN["ema"] = {scale: value + 0.2 for scale, value in GAIN["policy"].items()}


@dataclass
class Painter:
    """Grey images; a prompt's level is its uid / 100 + what the weights and the scale add + noise of the seed."""

    modalities: frozenset[str] = frozenset({"image"})
    which: str = "policy"
    asked: list = field(default_factory=list)

    @property
    def guided(self):
        return self.modalities != {"text"}

    @contextmanager
    def weights(self, which):
        before, self.which = self.which, which
        yield
        self.which = before

    def generate(self, prompts, seeds, guidance=None, steps=None):
        self.asked.append((self.which, guidance, steps, tuple(seeds)))
        gain = GAIN[self.which][SCALES[0] if guidance is None else guidance]
        levels = [p.uid / 100 + gain + (s % 1000) / 1e5 for p, s in zip(prompts, seeds, strict=True)]
        if self.modalities == {"text"}:
            return Media(text=Track([f"{level:.5f}" for level in levels]))
        return Media(image=Track(torch.tensor(levels)[:, None, None, None].expand(-1, 3, 8, 8).clone()))


PROMPTS = [Prompt(f"prompt {i}", uid=i) for i in range(7)]
