"""Which instruments sound which notes when: a spectrogram explained as a sum of the bank's own notes.

Non-negative factorisation with fixed spectra (Lee and Seung, 2001; Smaragdis and Brown, 2003): the spectra of every
note's attack, body and tail, of the drums, and of noise; only when each sounds is estimated, by the Kullback-Leibler
divergence. Of the instruments that may explain a sound the fewest are taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from genalign.lab.melody_bank import HIGHEST, HITS, INSTRUMENTS, LOWEST, RATE, hit, note
from genalign.lab.melody_pieces import SAMPLES

WINDOW, HOP = 2048, 512  # samples
FRAMES = SAMPLES // HOP + 1
PITCHES = range(LOWEST - 1, HIGHEST + 2)
PARTS = ((0, 2), (2, 8), (8, 24))  # frames of a note's attack, body and tail
HIT_PARTS = ((0, 1), (1, 2), (2, 4), (4, 8), (8, 16))
FAINT = 0.03  # of a note's loudest frame: a tail below is no spectrum
DRUM, NOISE = len(INSTRUMENTS), len(INSTRUMENTS) + len(HITS)  # numbers of sources, after the instruments
FIRST, PRUNED, THEN, REFINED = 12, 150, 20, 20  # steps with all spectra, how many are kept, steps with these; of voices
FEWER = 0.01  # weight of the preference for few instruments
RIVALS = 3  # instruments of which one is a voice
AUDIBLE = 0.01  # of all: a pitch that sounds less is not looked for
GAIN = 0.12  # share of the divergence that a second voice must take away
BELOW = 1.0  # semitones by which it must lie below the lead
QUIET = 0.04  # of the sound: a voice is louder than that
OWN = 0.35  # share of a voice that no overtone of the other could be
OVERTONES = (12, 19, 24, 28, 31)  # semitones of the second to the sixth harmonic
ROLLOFF = 0.95  # of half a sampling rate: what is above, resampling has made faint
EPSILON = 1e-3  # of the mean: divergences do not see what is fainter


@dataclass(frozen=True)
class Heard:
    """`voices` are instruments, the lead first; `rolls` (voices, 54, frames) how loud each pitch of each is,
    `drums` (3, frames) how loud each of HITS; `sureness` in [0, 1] of the voices, by how much worse any others
    explain the sound; `noise` the share of the sound that is no note and no drum."""

    voices: tuple[str, ...]
    rolls: np.ndarray
    drums: np.ndarray
    sureness: float
    noise: float


@dataclass(frozen=True)
class Explained:
    """What some instruments, `chosen`, the lead first, explain: `divergence` is what they leave, by the sound."""

    chosen: tuple[int, ...]
    divergence: float
    sources: np.ndarray  # of each of these rows
    numbers: np.ndarray  # MIDI numbers of them
    loud: np.ndarray  # (rows, frames)


@lru_cache(maxsize=1)
def filters() -> np.ndarray:
    """(bands, WINDOW/2 + 1): triangles at every line below 1 kHz, and at every half semitone above."""
    lines = np.arange(WINDOW // 2 + 1)
    low = np.arange(3, 1000 * WINDOW // RATE + 1)
    centres = np.concatenate([low, low[-1] * 2 ** (np.arange(1, 72) / 24)])
    edges = np.concatenate([[centres[0] - 1], centres, [centres[-1] * 2 ** (1 / 24)]])
    rising = (lines - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - lines) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


def bands_of(recorded: float) -> int:
    """How many of the bands a sound that was recorded at this rate, in Hz, can have anything in."""
    centres = filters().argmax(axis=1) * RATE / WINDOW  # Hz
    return len(centres) if recorded >= RATE else int((centres < ROLLOFF * recorded / 2).sum())


def spectrum(wave: np.ndarray) -> np.ndarray:
    """(N,) -> (bands, 1 + N // HOP) float32: magnitudes of Hann windows that are centred on every HOP samples."""
    padded = np.pad(np.asarray(wave, np.float32), WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    lines = np.abs(np.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1].astype(np.float32), axis=1))
    return np.asarray(filters() @ lines.T.astype(np.float32))


@lru_cache(maxsize=2)
def spectra(bands: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bands, K) spectra of the lowest bands that sum to 1, and of each its source (instrument, drum or noise) and its
    MIDI number."""
    columns, sources, pitches = [], [], []
    for source, name in enumerate(INSTRUMENTS):
        for pitch in PITCHES:
            for column in _parts(note(name, pitch), PARTS, bands):
                columns.append(column)
                sources.append(source)
                pitches.append(pitch)
    for index, name in enumerate(HITS):
        for column in _parts(hit(name), HIT_PARTS, bands):
            columns.append(column)
            sources.append(DRUM + index)
            pitches.append(0)
    flat = filters()[:bands].sum(axis=1) ** 0.5
    columns.append(flat / flat.sum())
    return np.stack(columns, 1).astype(np.float32), np.array([*sources, NOISE]), np.array([*pitches, 0])


def _parts(wave: np.ndarray, parts: Sequence[tuple[int, int]], bands: int) -> list[np.ndarray]:
    frames = spectrum(np.pad(wave, (WINDOW // 2, 0)))[:bands, WINDOW // 2 // HOP :]
    loudest = frames.sum(axis=0).max()
    means = [frames[:, start:end].mean(axis=1) for start, end in parts]
    return [mean / mean.sum() for mean in means if mean.sum() > FAINT * loudest]


def listen(wave: np.ndarray, recorded: float = RATE) -> Heard:
    """(N,) of RMS 1 at RATE -> what is heard. Of a sound that was recorded at a lower rate only what that rate holds is
    compared: an instrument is not told by overtones that cannot be there."""
    seen = spectrum(wave)[: bands_of(recorded)]
    rivals, pitches = _rivals(seen)
    pairs = [pair for pair in combinations(range(DRUM), 2) if set(pair) & set(rivals)]
    found = [_explained(seen, chosen, pitches) for chosen in (*((one,) for one in rivals), *pairs)]
    best, sureness = _fewest(found)
    rolls = np.stack([_roll(best, source) for source in best.chosen])
    drums = np.stack([best.loud[best.sources == DRUM + index].sum(axis=0) for index in range(len(HITS))])
    noise = float(best.loud[best.sources == NOISE].sum() / best.loud.sum())
    return Heard(tuple(INSTRUMENTS[source] for source in best.chosen), rolls, drums, sureness * (1 - noise), noise)


def _rivals(seen: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The instruments that explain most of what all together explain, and the MIDI numbers of the notes that sound."""
    columns, sources, numbers = spectra(len(seen))
    loud = np.full((columns.shape[1], seen.shape[1]), seen.mean() / columns.shape[1] * len(seen), np.float32)
    for step in range(FIRST + THEN):
        groups = np.minimum(sources, DRUM)
        share = np.bincount(groups, loud.sum(axis=1), DRUM + 1)
        price = FEWER / (share / share.sum() + 0.05)  # so that what explains little explains ever less
        price[DRUM] = 0
        loud *= _pull(seen, columns, loud) / (1 + price[groups])[:, None].astype(np.float32)
        if step == FIRST:
            kept = np.argsort(-loud.sum(axis=1))[:PRUNED]
            columns, sources, numbers, loud = columns[:, kept], sources[kept], numbers[kept], loud[kept]
    notes = sources < DRUM
    total = loud[notes].sum(axis=1)
    share = np.bincount(sources[notes], total, DRUM)
    heard = np.bincount(numbers[notes], total)
    return [int(source) for source in np.argsort(-share)[:RIVALS]], np.flatnonzero(heard > AUDIBLE * heard.sum())


def _pull(seen: np.ndarray, columns: np.ndarray, loud: np.ndarray) -> np.ndarray:
    """The multiplicative step that lowers the divergence; columns sum to 1."""
    floor = EPSILON * seen.mean()
    return np.asarray(columns.T @ ((seen + floor) / (columns @ loud + floor)))


def _explained(seen: np.ndarray, chosen: tuple[int, ...], pitches: np.ndarray) -> Explained:
    columns, sources, numbers = spectra(len(seen))
    rows = np.flatnonzero((sources >= DRUM) | (np.isin(sources, chosen) & np.isin(numbers, pitches)))
    columns = columns[:, rows]
    loud = np.repeat(seen.sum(axis=0)[None] / len(rows), len(rows), axis=0) + np.float32(1e-9)
    for _ in range(REFINED):
        loud *= _pull(seen, columns, loud)
    floor = EPSILON * seen.mean()
    target, made = seen + floor, columns @ loud + floor
    divergence = float((target * np.log(target / made) - target + made).sum() / target.sum())
    height = {source: _height(loud, numbers[rows], sources[rows] == source) for source in chosen}
    order = tuple(sorted(chosen, key=lambda source: -height[source]))
    return Explained(order, divergence, sources[rows], numbers[rows], loud)


def _height(loud: np.ndarray, numbers: np.ndarray, here: np.ndarray) -> float:
    """The mean MIDI number of what one instrument plays."""
    total = loud[here].sum(axis=1)
    return float(total @ numbers[here] / max(total.sum(), 1e-9))


def _fewest(found: Sequence[Explained]) -> tuple[Explained, float]:
    """One voice, or two where a second takes away much, sounds at all and lies below; and how sure this is."""
    alone = sorted((each for each in found if len(each.chosen) == 1), key=lambda each: each.divergence)
    duets = sorted((each for each in found if _is_duet(each)), key=lambda each: each.divergence)
    gain = 1 - duets[0].divergence / alone[0].divergence if duets else 0.0
    ranked = duets if gain > GAIN else alone
    rival = ranked[1].divergence if len(ranked) > 1 else np.inf
    by_number = abs(gain - GAIN) / GAIN
    by_rival = (rival / ranked[0].divergence - 1) / GAIN
    return ranked[0], float(np.clip(min(by_number, by_rival), 0, 1))


def _roll(explained: Explained, source: int) -> np.ndarray:
    """(54, frames): how loud each pitch of an instrument is."""
    own = explained.sources == source
    roll = np.zeros((len(PITCHES), explained.loud.shape[1]), np.float32)
    np.add.at(roll, explained.numbers[own] - PITCHES[0], explained.loud[own])
    return roll


def _is_duet(explained: Explained) -> bool:
    if len(explained.chosen) == 1:
        return False
    lead, second = (_roll(explained, source) for source in explained.chosen)
    pitches = np.asarray(PITCHES)
    heights = [roll.sum(axis=1) @ pitches / max(roll.sum(), 1e-9) for roll in (lead, second)]
    loud = min(lead.sum(), second.sum()) / explained.loud.sum()
    own = min(_own(lead, second), _own(second, lead))
    return bool(heights[0] - heights[1] > BELOW and loud > QUIET and own > OWN)


def _own(roll: np.ndarray, other: np.ndarray) -> float:
    """The share of a voice's sound that is louder than the other voice at, or as many harmonics below, its pitch."""
    around = np.maximum(other, np.maximum(np.roll(other, 1, axis=1), np.roll(other, -1, axis=1)))
    reach = around.copy()
    for step in OVERTONES:
        reach[step:] = np.maximum(reach[step:], around[:-step])
    return float(roll[roll > reach].sum() / max(roll.sum(), 1e-9))
