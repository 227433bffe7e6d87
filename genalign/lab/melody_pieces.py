"""The pieces of MelodyWorld: which note of which voice sounds when, and the wave.

There is one size: SAMPLES at 16 kHz, 3.072 s; and one clock, so that notes begin on its ticks, four to a latent of
tiny-music.
"""

from dataclasses import dataclass

import numpy as np
import torch

from genalign.lab.melody import DUET, HIGH_ONLY, LOUDNESSES, REGISTERS, TEMPI
from genalign.lab.melody_bank import INSTRUMENTS, RATE, hit, played
from genalign.lab.melody_songs import TONICS, Song, songs
from genalign.lab.world import Facts
from genalign.media.sound import loudness as measured

SAMPLES = 49_152
LENGTH = SAMPLES / RATE  # seconds
TICK = 0.016  # seconds
START = 4 * TICK  # seconds before the first note
PACE = {"slow": (90.0, 102.0), "medium": (132.0, 148.0), "fast": (195.0, 218.0)}  # quarter notes a minute
BEATS = {"slow": 40, "medium": 28, "fast": 18}  # ticks of a quarter note, of such paces
MIDDLE = {"low": 50, "high": 69}  # MIDI number from which on, for an octave, the mean pitch of the melody lies
LEVEL = {"soft": (-30.0, -28.0), "loud": (-22.0, -20.0)}  # LUFS
BASS = 43  # lowest root of a chord
SECOND, DRUM = -5.0, -5.0  # decibels of these by the lead's; each varies by VARIED
VARIED = 1.5
HAT = 0.25  # how loud a hat is by the kick and snare
LEGATO = 0.95  # share of a note's length for which it is held
PITCHES = range(36, 96)  # MIDI numbers, among them all that a lead plays
HELD = 96  # ticks that are told apart: a note of the bank is no longer
FADE = 0.02  # seconds at the end of a piece, which stops wherever the melody is


@dataclass(frozen=True)
class Note:
    """`voice` counts the facts' voices; start and length are in seconds, pitch is a MIDI number."""

    voice: int
    start: float
    length: float
    pitch: int


@dataclass(frozen=True)
class Piece:
    """`hits` are (name, seconds) of the drums. `levels` are decibels of the second voice and of the drums."""

    notes: tuple[Note, ...]
    hits: tuple[tuple[str, float], ...]
    levels: tuple[float, float]
    pace: float  # quarter notes a minute
    loudness: float  # LUFS
    facts: Facts


def arrange(facts: Facts, rng: np.random.Generator) -> Piece:
    """Notes as the facts state; what they leave unsaid is drawn at random, the melody from those of the key's mode."""
    song = songs()[facts["melody"] or str(rng.choice(_melodies(facts["key"])))]
    tonic = TONICS[facts["key"].split()[0] if facts["key"] is not None else str(rng.choice(list(TONICS)))]
    lead_only_high = len(facts["voices"]) == 2 or facts["voices"][0] in HIGH_ONLY
    register = facts["register"] or ("high" if lead_only_high else str(rng.choice(REGISTERS)))
    pace = 60 / (TICK * BEATS[facts["tempo"] or str(rng.choice(TEMPI))])
    loudness = rng.uniform(*LEVEL[facts["loudness"] or str(rng.choice(LOUDNESSES))])
    home = tonic + 12 * int(np.ceil((MIDDLE[register] - song.middle - tonic) / 12))
    beat = 60 / pace
    notes = [Note(0, START + beat * start, beat * length, home + pitch) for start, length, pitch in song.notes]
    if len(facts["voices"]) == 2:
        notes += [Note(1, START + beat * start, beat, pitch) for start, pitch in chords(song, tonic)]
    drums = facts["drums"] if facts["drums"] is not None else rng.random() < DUET
    hits = [(name, START + beat * start) for name, start in drumming(song)] if drums else []
    levels = (SECOND + rng.uniform(-VARIED, VARIED), DRUM + rng.uniform(-VARIED, VARIED))
    heard = tuple(note for note in notes if note.start < LENGTH - FADE)
    return Piece(heard, tuple(each for each in hits if each[1] < LENGTH - FADE), levels, pace, loudness, facts)


def _melodies(key: str | None) -> list[str]:
    return [song.name for song in songs().values() if key is None or key.endswith(song.mode)]


def chords(song: Song, tonic: int) -> list[tuple[float, int]]:
    """(quarter note, MIDI number): the root on the first beat of a bar, or half of a bar of four, the others after."""
    found: list[tuple[float, int]] = []
    chord = song.chord(song.upbeat)
    for start, place in song.beats():
        if start < song.upbeat:
            continue
        if place == 0 or (song.metre == 4 and place == 2):
            chord = song.chord(start)
            found.append((start, BASS + (tonic + chord[0] - BASS) % 12))
        else:
            low = BASS + 9  # so that third and fifth lie below the high register
            found += [(start, low + (tonic + tone - low) % 12) for tone in chord[1:]]
    return found


def drumming(song: Song) -> list[tuple[str, float]]:
    """(name, quarter note): kick and snare by turns (in three: one kick), and a hat on every half beat."""
    found: list[tuple[str, float]] = []
    for start, place in song.beats():
        strong = place == 0 if song.metre == 3 else place % 2 == 0
        found += [("kick" if strong else "snare", start), ("hat", start), ("hat", start + 0.5)]
    return found


def render(piece: Piece) -> np.ndarray:
    """(1, 49152) float32 in [-1, 1] at 16 kHz."""
    voices = [_track() for _ in piece.facts["voices"]]
    for note in piece.notes:
        wave = played(piece.facts["voices"][note.voice], note.pitch, LEGATO * note.length)
        _add(voices[note.voice], wave, note.start)
    drums = _track()
    for name, time in piece.hits:
        _add(drums, hit(name) * (HAT if name == "hat" else 1.0), time)
    mixed = voices[0] / _level(voices[0])
    for track, decibels in zip([*voices[1:], drums], piece.levels[2 - len(voices) :], strict=True):
        mixed += track * 10 ** (decibels / 20) / max(_level(track), 1e-9)
    end = round(FADE * RATE)
    mixed[-end:] *= np.linspace(1, 0, end)
    return at_loudness(mixed, piece.loudness).astype(np.float32)[None]


def shown(piece: Piece, places: int = 48) -> np.ndarray:
    """Which notes are played where: (places, 6) int16, of equal parts of the piece, the instrument, the pitch, and for
    how many ticks at most HELD - 1 it has been held, of the lead and then of the second voice; of each one class more
    where that is silent. In a part with several notes of a voice it is the last that begins before its middle."""
    nothing = [len(INSTRUMENTS), len(PITCHES), HELD]
    found = np.tile(np.array([*nothing, *nothing], np.int16), (places, 1))
    middles = (np.arange(places) + 0.5) * LENGTH / places
    for note in piece.notes:
        sounds = (middles >= note.start) & (middles < note.start + LEGATO * note.length)
        held = np.minimum(np.rint((middles[sounds] - note.start) / TICK), HELD - 1)
        player, pitch = INSTRUMENTS.index(piece.facts["voices"][note.voice]), PITCHES.index(note.pitch)
        found[sounds, 3 * note.voice : 3 * note.voice + 3] = [(player, pitch, int(ticks)) for ticks in held]
    return found


def _track() -> np.ndarray:
    return np.zeros(SAMPLES)


def _add(track: np.ndarray, wave: np.ndarray, time: float) -> None:
    start = round(time * RATE)
    part = track[start : start + len(wave)]
    part += wave[: len(part)]


def _level(track: np.ndarray) -> float:
    return float(np.sqrt((track**2).mean()))


def at_loudness(wave: np.ndarray, loudness: float) -> np.ndarray:
    """(N,) at this loudness in LUFS (ITU-R BS.1770), or quieter where a peak would pass 0.95."""
    scaled = wave * 10 ** ((loudness - integrated(wave)) / 20)
    return scaled * min(1.0, 0.95 / max(float(np.abs(scaled).max()), 1e-9))


def integrated(wave: np.ndarray) -> float:
    """The loudness of (N,) at 16 kHz, N >= 6400, in LUFS; minus infinity of silence."""
    return measured(torch.from_numpy(wave)[None], RATE)
