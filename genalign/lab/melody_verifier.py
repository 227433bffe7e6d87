"""The rule verifier of MelodyWorld: reads a sound without any network, and gives its confidence.

Instruments by the spectra of the bank's notes (`melody_hearing`), melody, tempo and key by the lead's pitches and their
beginnings (`melody_matching`), loudness by ITU-R BS.1770. It never sees the held-out judge's weights, nor the judge its
output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from genalign.lab.melody import KINDS, TEMPI
from genalign.lab.melody_bank import RATE
from genalign.lab.melody_facts import check
from genalign.lab.melody_hearing import PITCHES, Heard, listen
from genalign.lab.melody_matching import Matched, key_of, match
from genalign.lab.melody_pieces import LEVEL, MIDDLE, PACE
from genalign.lab.melody_songs import SCALES, TONICS, songs
from genalign.lab.world import Facts
from genalign.media.sound import BLOCK, clicks, clipped, loudness, silent

QUALITIES = ("unclipped", "unbroken", "clickless")
ASPECTS = (*KINDS, *QUALITIES, "all_facts", "whole")
BOUNDS = [float(np.sqrt(PACE[slow][1] * PACE[fast][0])) for slow, fast in pairwise(TEMPI)]
HEIGHT = (MIDDLE["low"] + 12 + MIDDLE["high"]) / 2  # MIDI number between the registers
LEVELS = (LEVEL["soft"][1] + LEVEL["loud"][0]) / 2  # LUFS between soft and loud
DRUMMED = 0.027  # how much drums there are in a sound that has some
LIKE, CERTAIN = 0.4, 0.15  # a likeness below is no melody; so much more than any other's is sure
FAINTEST = -60.0  # LUFS: softer than that nothing is heard
CLIPPED, SILENT, CLICKS = 0.002, 0.65, 2.0  # shares and clicks a second at which a quality is a half
NOBODY: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listened:
    """What was heard as facts, of which an unknown melody is None; and what they were read from: `height`, the lead's
    mean MIDI number, `level` in LUFS, and `drummed`, see DRUMMED."""

    facts: dict[str, Any]
    heard: Heard | None
    matched: Matched | None
    height: float
    level: float
    drummed: float


def read(wave: np.ndarray, sample_rate: float = RATE) -> Listened:
    """A sound (channels, samples) in [-1, 1] -> what is heard in it. What is softer than -60 LUFS is silence.

    Raises:
        ValueError: not (channels, samples), no sample rate, not finite, or shorter than 0.4 s.
    """
    if wave.ndim != 2 or not sample_rate > 0:
        raise ValueError(
            f"the verifier reads (channels, samples) and a sample rate, not {wave.shape} at {sample_rate} Hz"
        )
    if not np.isfinite(wave).all():
        raise ValueError("the sound is not finite; drop it")
    if wave.shape[1] < BLOCK * sample_rate:
        raise ValueError(f"the verifier hears {BLOCK} s at least, not {wave.shape[1] / sample_rate:.3g} s")
    level = loudness(torch.from_numpy(np.asarray(wave)), sample_rate)
    mono = _at_rate(wave.mean(axis=0), sample_rate)
    if not level > FAINTEST or not np.abs(mono).max() > 0:
        nothing = {"melody": None, "voices": NOBODY, "key": None, "tempo": None, "register": None, "drums": False}
        return Listened({**nothing, "loudness": "soft"}, None, None, HEIGHT, level, 0.0)
    heard = listen(mono / np.sqrt((mono**2).mean()), sample_rate)
    lead = heard.rolls[0]
    whole = [lead, heard.rolls.sum(axis=0)][: len(heard.voices)]  # what was split in two may be one voice
    matched = max((match(roll) for roll in whole), key=lambda each: each.best)
    height = float(lead.sum(axis=1) @ np.asarray(PITCHES) / max(lead.sum(), 1e-9))
    drummed = _drummed(heard)
    known = matched.best >= LIKE
    facts = {
        "melody": matched.melody if known else None,
        "voices": heard.voices,
        "key": _key(matched) if known else key_of(heard.rolls)[0],
        "tempo": TEMPI[int(np.searchsorted(BOUNDS, matched.pace))],
        "register": "high" if height > HEIGHT else "low",
        "loudness": "loud" if level > LEVELS else "soft",
        "drums": drummed > DRUMMED,
    }
    return Listened(facts, heard, matched, height, level, drummed)


def _drummed(heard: Heard) -> float:
    """The share of the sound that is bursts of drums: the root of all times the kick's. What sounds half of the time,
    as noise does, bursts not."""
    usual = np.median(heard.drums, axis=1, keepdims=True)
    bursts = np.clip(heard.drums - 2 * usual, 0, None).sum(), np.clip(heard.drums - usual, 0, None)[0].sum()
    return float(np.sqrt(bursts[0] * bursts[1]) / max(heard.drums.sum() + heard.rolls.sum(), 1e-9))


def _at_rate(mono: np.ndarray, sample_rate: float) -> np.ndarray:
    from genalign.media.resample import resampled

    return resampled(torch.from_numpy(mono.astype(np.float32)), round(sample_rate), RATE).numpy()


def _key(matched: Matched) -> str | None:
    """The tonic of the matched melody and its mode; None where the tonic is none of the world's six."""
    named = {number: tonic for tonic, number in TONICS.items()}
    tonic = named.get(matched.home % 12)
    return None if tonic is None else f"{tonic} {songs()[matched.melody].mode}"


def verify(wave: np.ndarray, facts: Facts, sample_rate: float = RATE) -> dict[str, tuple[float, float]]:
    """Score and confidence, both in [0, 1], of each kind of fact, (nan, 0) where the prompt does not state it; of each
    quality; of `all_facts`, all or nothing; and of `whole`: all facts, and none of the qualities below a half.

    Scores give partial credit: instruments is the F1 of heard against stated ones, melody by how like the stated one it
    is, key by the notes that both scales share, and tempo, register and loudness by how far they are on the right side.
    """
    seen = read(wave, sample_rate)
    strict = check(facts, seen.facts)
    sureness = _sureness(seen)
    result = dict.fromkeys(ASPECTS, (np.nan, 0.0))
    for kind in KINDS:
        if strict[kind] is not None:
            result[kind] = (_credit(kind, facts, seen, bool(strict[kind])), sureness[kind])
    result |= {quality: (score, 1.0) for quality, score in qualities(wave, sample_rate).items()}
    weakest = min(sureness[kind] for kind in KINDS if strict[kind] is not None)
    result["all_facts"] = (float(bool(strict["all_facts"])), weakest)
    good = min(result[quality][0] for quality in QUALITIES) >= 0.5
    result["whole"] = (float(bool(strict["all_facts"]) and good), weakest)
    return result


def qualities(wave: np.ndarray, sample_rate: float = RATE) -> dict[str, float]:
    """Each in [0, 1], and a half where CLIPPED, SILENT or CLICKS are reached."""
    row = torch.from_numpy(np.asarray(wave, np.float32))
    rate = len(clicks(row, sample_rate)) / (wave.shape[1] / sample_rate)
    return {
        "unclipped": CLIPPED / (CLIPPED + clipped(row)),
        "unbroken": 1 / (1 + (silent(row, sample_rate) / SILENT) ** 4),
        "clickless": CLICKS / (CLICKS + rate),
    }


def _credit(kind: str, facts: Facts, seen: Listened, right: bool) -> float:
    if right and kind in ("melody", "instruments", "order", "key"):
        return 1.0
    if seen.matched is None:
        return float(right)
    if kind == "instruments":
        named, there = set(facts["voices"]), set(seen.facts["voices"])
        return 2 * len(named & there) / (len(named) + len(there))
    if kind == "melody":
        return float(np.clip(seen.matched.likeness[facts["melody"]] - LIKE / 2, 0, 0.5))
    if kind == "key":
        return 0.0 if seen.facts["key"] is None else 0.5 * len(_scale(facts["key"]) & _scale(seen.facts["key"])) / 7
    if kind == "tempo":
        index, pace = TEMPI.index(facts["tempo"]), np.log2(seen.matched.pace)
        edges = np.log2([1e-9, *BOUNDS, 1e9])
        return float(np.clip(0.5 + 2 * min(pace - edges[index], edges[index + 1] - pace), 0, 1))
    if kind == "register":
        return float(np.clip(0.5 + (seen.height - HEIGHT) / 12 * (1 if facts["register"] == "high" else -1), 0, 1))
    if kind == "loudness":
        return float(np.clip(0.5 + (seen.level - LEVELS) / 6 * (1 if facts["loudness"] == "loud" else -1), 0, 1))
    return float(right)  # of order and drums


def _scale(key: str) -> set[int]:
    tonic, mode = key.split()
    return {(TONICS[tonic] + step) % 12 for step in SCALES[mode]}


def _sureness(seen: Listened) -> dict[str, float]:
    if seen.heard is None or seen.matched is None:
        return dict.fromkeys(KINDS, 1.0)
    first, second = sorted(seen.matched.likeness.values(), reverse=True)[:2]
    clean = 1 - seen.heard.noise
    found = float(np.clip((first - LIKE) / LIKE, 0, 1)) * clean
    edge = float(np.abs(np.log2(np.divide(seen.matched.pace, BOUNDS))).min())
    return {
        "melody": found * float(np.clip((first - second) / CERTAIN, 0, 1)),
        "instruments": seen.heard.sureness,
        "order": seen.heard.sureness,
        "key": found if first >= LIKE else key_of(seen.heard.rolls)[1],
        "tempo": found * float(np.clip(edge / 0.15, 0, 1)),
        "register": clean * float(np.clip(abs(seen.height - HEIGHT) / 4, 0, 1)),
        "loudness": float(np.clip(abs(seen.level - LEVELS) / 4, 0, 1)),
        "drums": clean * float(np.clip(abs(seen.drummed - DRUMMED) / DRUMMED, 0, 1)),
    }


def verify_batch(
    waves: Sequence[np.ndarray], facts: Sequence[Facts], sample_rate: float = RATE
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`verify` of sounds (channels, samples): aspect -> (score (B,), confidence (B,)); score nan where not stated."""
    rows = [verify(wave, each, sample_rate) for wave, each in zip(waves, facts, strict=True)]
    return {key: tuple(np.array([row[key][k] for row in rows]) for k in (0, 1)) for key in ASPECTS}  # type: ignore[misc]
