"""Exemplars for rewards that compare sets of sounds: MelodyWorld's pieces, as sounds (M,C,N) at a rate, or as texts.

A function here is named as `exemplars: melody_exemplars.py:pieces` in a reward file. A folder of sounds (.wav, .flac,
.ogg), or a .txt of texts, does as well.
"""

import numpy as np
import torch

from genalign.lab.melody import caption, sample_facts
from genalign.lab.melody_bank import RATE
from genalign.lab.melody_pieces import arrange, render
from genalign.lab.music import SOUND_RATE
from genalign.media.resample import resampled


def pieces(count=256):
    """The world as it is: every instrument, melody, key and tempo that training prompts ask for."""
    return _sounds(_written(count, lambda facts: facts)[0])


def flutes(count=256):
    """A style: the same pieces, all on a flute alone, softly and without drums."""
    return _sounds(_written(count, _on_a_flute)[0])


def flutes_told(count=256):
    """The same style in words, for a model of sounds and texts."""
    return _written(count, _on_a_flute)[1]


def captioned(count=256):
    """Pieces with what they are in words, which tell how far apart the two lie in a model of both."""
    written, texts = _written(count, lambda facts: facts)
    return _sounds(written), texts


def _on_a_flute(facts):
    return {**facts, "voices": ["flute"], "register": "high", "loudness": "soft", "drums": False}


def _written(count, change):
    rng = np.random.default_rng(51)
    written, texts = [], []
    for _ in range(count):
        facts = change(sample_facts(rng, "train"))
        written.append(arrange(facts, rng))
        texts.append(caption(facts, rng))
    return written, texts


def _sounds(written):
    """At the rate of tiny-music: else every distance would be about the overtones that it cannot play."""
    rendered = torch.from_numpy(np.stack([render(piece) for piece in written]))
    return {"sounds": resampled(rendered, RATE, SOUND_RATE).numpy(), "rate": SOUND_RATE}
