"""Scenes of EmojiWorld."""

import numpy as np

from genalign.lab import world


def scenes(count, seed, split=None, noise=0.0):
    rng = np.random.default_rng(seed)
    facts = [world.sample_facts(rng, split) for _ in range(count)]
    images = np.stack([world.render(world.place(f, rng), rng) for f in facts])
    images = np.clip(images + noise * rng.standard_normal(images.shape), 0, 1).astype(np.float32)
    changed = [world.change_one_fact(f, rng) for f in facts]
    return images, facts, changed
