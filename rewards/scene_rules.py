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
    """Half for the mean of the facts that a prompt states, half for all of them together; each fact for the log.

    Partial credit alone ranks siblings poorly: a picture with one object too many is nearly as good as a right one.
    """
    pictures = image.permute(0, 2, 3, 1).float().numpy()  # (B,64,64,3)
    told = verify_batch(pictures, facts)
    parts = {fact: stated(*told[fact]) for fact in FACTS}
    rows = zip(*parts.values(), told["all_facts"][0], strict=True)
    return {"scene_facts": [credit(*row) for row in rows], **parts}


@reward(needs=["facts.objects"])
def whole_scene(image, facts):
    """All or nothing: 1 where every stated fact holds."""
    pictures = image.permute(0, 2, 3, 1).float().numpy()
    return stated(*verify_batch(pictures, facts)["all_facts"])


def stated(score, confidence):
    """Pairs (score, confidence); None where the prompt does not state the fact."""
    return [None if np.isnan(s) else (float(s), float(c)) for s, c in zip(score, confidence, strict=True)]


def credit(*row):
    """Score and confidence from the facts' pairs and, last, whether all facts hold."""
    score, confidence = np.mean([pair for pair in row[:-1] if pair is not None], axis=0)
    return (score + row[-1]) / 2, confidence
