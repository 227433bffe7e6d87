"""Exemplars for rewards that compare sets: pictures (M,3,H,W) in [0,1], texts, or both as a pair.

A function here is named as `exemplars: scene_exemplars.py:scenes` in a reward file. A folder of pictures or a .txt of
texts does as well. These draw EmojiWorld scenes; they run once, in the training's own process.
"""

import numpy as np

from genalign.lab.world import caption, place, render, sample_facts


def scenes(count=1024):
    """The world as it is: every object, count and background that training prompts ask for."""
    return _drawn(count, lambda facts: facts)[0]


def night(count=1024):
    """A style: the same scenes, all on the gray background."""
    return _drawn(count, lambda facts: {**facts, "background": "gray"})[0]


def night_told(count=1024):
    """The same style in words."""
    return _drawn(count, lambda facts: {**facts, "background": "gray"})[1]


def captioned(count=512):
    """Scenes with what they show in words, which tell how far apart the two lie in a model of both."""
    return _drawn(count, lambda facts: facts)


def _drawn(count, change):
    rng = np.random.default_rng(50)
    pictures, texts = [], []
    for _ in range(count):
        facts = change(sample_facts(rng, "train"))
        pictures.append(render(place(facts, rng), rng).transpose(2, 0, 1))
        texts.append(caption(facts, rng))
    return np.stack(pictures), texts
