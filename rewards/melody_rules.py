"""Rules for MelodyWorld's sounds: does one hear what the prompt states, and is it free of faults?

Copy this file and change it; scene_rules.py says what such functions may read and return.
"""

import numpy as np

from genalign.lab.melody import KINDS
from genalign.lab.melody_verifier import QUALITIES, qualities, verify
from genalign.reward import reward


@reward(needs=["facts.voices", "audio"], aspects={"melody_facts": 1.0, **dict.fromkeys(KINDS, 0.0)})
def melody_facts(media, facts):
    """Half for the mean of the facts that a prompt states, half for all of them together; each fact for the log."""
    heard = [verify(wave, each, rate) for (wave, rate), each in zip(sounds(media), facts, strict=True)]
    parts = {kind: [stated(row[kind]) for row in heard] for kind in KINDS}
    rows = zip(*parts.values(), (row["all_facts"][0] for row in heard), strict=True)
    return {"melody_facts": [credit(*row) for row in rows], **parts}


@reward(needs=["audio"], aspects={"sound_quality": 1.0, **dict.fromkeys(QUALITIES, 0.0)})
def sound_quality(media):
    """The mean of no clipping, no long silence and no clicks; each for the log."""
    heard = [qualities(wave, rate) for wave, rate in sounds(media)]
    parts = {quality: [row[quality] for row in heard] for quality in QUALITIES}
    return {"sound_quality": [float(np.mean(row)) for row in zip(*parts.values(), strict=True)], **parts}


def sounds(media):
    """Each row's sound (channels, samples), and its sample rate."""
    track = media["audio"]
    return [(wave.float().numpy(), track.rate_of(row)) for row, wave in enumerate(track.data)]


def stated(pair):
    """(score, confidence); None where the prompt does not state the fact."""
    return None if np.isnan(pair[0]) else pair


def credit(*row):
    """Score and confidence from the facts' pairs and, last, whether all facts hold."""
    score, confidence = np.mean([pair for pair in row[:-1] if pair is not None], axis=0)
    return (score + row[-1]) / 2, confidence
