"""Rules for EmojiWorld images: does the picture show what the prompt states?

Copy this file and change it. A function's parameter names pick what it reads; it returns one score an image, or a pair
(score, confidence), or None where it has nothing to say. It runs in a process of its own, so it may be slow or crash.
"""

import numpy as np

from genalign.lab.verifier import verify_batch
from genalign.reward import reward

FACTS = ("objects", "count", "relation", "background")


@reward(needs=["facts.objects"], aspects={"scene_facts": 1.0, **dict.fromkeys(FACTS, 0.0)})
def scene_facts(image, facts):
    """Partial credit: the mean score of the facts that a prompt states, with its confidence; each fact for the log."""
    pictures = image.permute(0, 2, 3, 1).float().numpy()  # (B,64,64,3)
    told = verify_batch(pictures, facts)
    parts = {fact: stated(*told[fact]) for fact in FACTS}
    rows = zip(*parts.values(), strict=True)
    return {"scene_facts": [mean(row) for row in rows], **parts}


@reward(needs=["facts.objects"])
def whole_scene(image, facts):
    """All or nothing: 1 where every stated fact holds."""
    pictures = image.permute(0, 2, 3, 1).float().numpy()
    return stated(*verify_batch(pictures, facts)["all_facts"])


def stated(score, confidence):
    """Pairs (score, confidence); None where the prompt does not state the fact."""
    return [None if np.isnan(s) else (float(s), float(c)) for s, c in zip(score, confidence, strict=True)]


def mean(pairs):
    """Mean score and mean confidence of the facts that are stated."""
    told = [pair for pair in pairs if pair is not None]
    return tuple(np.mean(told, axis=0)) if told else None
