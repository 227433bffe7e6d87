"""The melodies of MelodyWorld: read from their notes in assets/melodyworld/melodies.yaml, and harmonised by rule."""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from genalign.files.shipped import shipped

TONICS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9}  # semitones above C
MODES = ("major", "minor")
KEYS = tuple(f"{tonic} {mode}" for tonic in TONICS for mode in MODES)
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}  # semitones above the tonic
CHORDS = {  # root, third and fifth above the tonic, the likeliest first
    "major": ((0, 4, 7), (7, 11, 14), (5, 9, 12)),
    "minor": ((0, 3, 7), (7, 11, 14), (5, 8, 12), (10, 14, 17)),
}
PREFERENCE = 0.15  # quarter notes that a chord must explain beyond a likelier one
NOTE = re.compile(r"([A-G])(#?)(\d)|R")
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


@dataclass(frozen=True)
class Song:
    """`notes` rows are (start, length, pitch) in quarter notes and semitones above the tonic; rests are left out.
    `upbeat` is where the first bar of `metre` quarter notes begins."""

    name: str
    source: str
    mode: str
    metre: float
    upbeat: float
    notes: tuple[tuple[float, float, int], ...]

    @property
    def length(self) -> float:
        """Quarter notes until the last note ends."""
        start, length, _ = self.notes[-1]
        return start + length

    @property
    def middle(self) -> float:
        """The mean pitch, each note by its length."""
        _, lengths, pitches = np.asarray(self.notes).T
        return float(np.average(pitches, weights=lengths))

    def beats(self) -> list[tuple[float, int]]:
        """Quarter notes on which a beat falls, and the beat's number in its bar, from 0; the upbeat's count as well."""
        found = []
        for index in range(-int(self.upbeat), int(self.length - self.upbeat) + 1):
            place = index % self.metre
            if self.upbeat + index < self.length and place == int(place):
                found.append((self.upbeat + index, int(place)))
        return found

    def chord(self, start: float) -> tuple[int, int, int]:
        """The chord that best explains the melody in the bar, or half of a bar of four, that begins here."""
        end = start + (2 if self.metre == 4 else self.metre)
        best, chosen = -np.inf, CHORDS[self.mode][0]
        for index, chord in enumerate(CHORDS[self.mode]):
            explained = -PREFERENCE * index
            for begin, length, pitch in self.notes:
                heard = max(0.0, min(begin + length, end) - max(begin, start))
                on_beat = 1.5 if begin == start else 1.0
                explained += on_beat * heard * (any((pitch - tone) % 12 == 0 for tone in chord) - 0.5)
            if explained > best:
                best, chosen = explained, chord
        return chosen


@lru_cache(maxsize=1)
def songs() -> dict[str, Song]:
    """The shipped melodies, by name."""
    import yaml

    rows = yaml.safe_load(shipped("assets", "melodyworld", "melodies.yaml").read_text(encoding="utf-8"))
    return {row["name"]: _song(row) for row in rows}


def _song(row: dict[str, object]) -> Song:
    tonic, mode = str(row["key"]).split()
    home = 12 * 5 + STEPS[tonic]  # MIDI number of the tonic in the octave of middle C
    notes, now = [], 0.0
    for word in str(row["notes"]).split():
        name, _, given = word.partition(":")
        length = float(given or 1)
        match = NOTE.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} in the notes of {row['name']} is no pitch; write C4, F#4 or R")
        if name != "R":
            letter, sharp, octave = match.groups()
            notes.append((now, length, 12 * (int(octave) + 1) + STEPS[letter] + bool(sharp) - home))
        now += length
    metre, upbeat = float(str(row["metre"])), float(str(row.get("upbeat", 0)))
    return Song(str(row["name"]), str(row["source"]), mode, metre, upbeat, tuple(notes))
