"""Rules for EmojiWorld's moving clips: is what the prompt states seen, is it well made, and does the sound fit?

Copy this file and change it; scene_rules.py says what such functions may read and return.
"""

import numpy as np

from genalign.lab.moves_verifier import QUALITIES, synchrony, verify_batch
from genalign.reward import reward

FACTS = ("object", "motion", "speed", "order", "passing", "background")


@reward(needs=["facts.moves"], aspects={"clip_facts": 1.0, **dict.fromkeys(FACTS, 0.0)})
def clip_facts(video, facts):
    """Half for the mean of the facts that a prompt states, half for all of them together; each fact for the log."""
    seen = verify_batch(video.float().numpy(), facts)
    parts = {fact: stated(*seen[fact]) for fact in FACTS}
    rows = zip(*parts.values(), seen["all_facts"][0], strict=True)
    return {"clip_facts": [credit(*row) for row in rows], **parts}


@reward(needs=["facts.moves"], aspects={"clip_quality": 1.0, **dict.fromkeys(QUALITIES, 0.0)})
def clip_quality(video, facts):
    """The mean of smooth motion, permanent objects and steady colours; each for the log."""
    seen = verify_batch(video.float().numpy(), facts)
    parts = {quality: stated(*seen[quality]) for quality in QUALITIES}
    return {"clip_quality": [tuple(np.mean(row, axis=0)) for row in zip(*parts.values(), strict=True)], **parts}


@reward(needs=["video", "audio"])
def knocks_with_bounces(media):
    """Whether sound and bounces come together; nothing to say of a silent clip without a bounce."""
    clips, sound = media["video"].data, media["audio"]
    waves = [wave.float().numpy() for wave in sound.data]
    rates = [sound.rate_of(row) for row in range(len(waves))]
    heard = [synchrony(*row) for row in zip(clips.float().numpy(), waves, rates, strict=True)]
    return stated(*np.transpose(heard))


def stated(score, confidence):
    """Pairs (score, confidence); None where there is nothing to score."""
    return [None if np.isnan(s) else (float(s), float(c)) for s, c in zip(score, confidence, strict=True)]


def credit(*row):
    """Score and confidence from the facts' pairs and, last, whether all facts hold."""
    score, confidence = np.mean([pair for pair in row[:-1] if pair is not None], axis=0)
    return (score + row[-1]) / 2, confidence
