"""Which melody of MelodyWorld a voice plays, at what pace and in which key: by its pitches, and where they begin."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from genalign.lab.melody_bank import RATE
from genalign.lab.melody_hearing import FRAMES, HOP, PITCHES
from genalign.lab.melody_pieces import LEGATO, START
from genalign.lab.melody_songs import TONICS, songs

PACES = np.geomspace(84, 232, 36)  # quarter notes a minute, 3% apart
HOMES = np.arange(36, 85)  # MIDI numbers of tonics
PAD = 32  # semitones beyond which no melody goes from its tonic
MOST = 32  # notes of a melody
NOTHING = -(10**6)  # a pitch where nothing sounds
# How well each semitone above the tonic fits a key (Krumhansl and Kessler, 1982).
PROFILES = {
    "major": (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    "minor": (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}


@dataclass(frozen=True)
class Matched:
    """The best melody, its pace in quarter notes a minute, and the MIDI number of its tonic. `likeness` in [0, 1] by
    melody: at its own best pace and tonic."""

    melody: str
    pace: float
    home: int
    likeness: dict[str, float]

    @property
    def best(self) -> float:
        return self.likeness[self.melody]


@dataclass(frozen=True)
class Places:
    """Where in a padded roll, flattened, melodies are to be heard: `at` (K, n), and weights `there` (K, n), 0 of what
    is no place, of length 1, so that a sum over a roll of length 1 is a cosine."""

    at: np.ndarray
    there: np.ndarray

    @staticmethod
    def of(pitches: np.ndarray, times: np.ndarray) -> "Places":
        """Pitches (K, n) in semitones above the tonic, or NOTHING, at frames (K, n) or (n,)."""
        real = pitches != NOTHING
        weight = real / np.sqrt(np.maximum(real.sum(axis=1, keepdims=True), 1))
        at = np.where(real, (pitches + PAD) * FRAMES + times, 0)
        return Places(at.astype(np.int32), weight.astype(np.float32))

    def sums(self, roll: np.ndarray, homes: np.ndarray) -> np.ndarray:
        """(homes, K) of a roll (54, FRAMES), with the tonic at each of these MIDI numbers."""
        flat = np.pad(roll, ((2 * PAD, PAD), (0, 0))).ravel()
        shifts = (homes - PITCHES[0] + PAD) * FRAMES
        return np.stack([np.einsum("kn,kn->k", flat[shift:].take(self.at), self.there) for shift in shifts])


@lru_cache(maxsize=1)
def _scores() -> tuple[Places, Places]:
    """Every melody at every pace, melody by melody: where it sounds, and where its notes begin."""
    paths, times, pitches = [], [], []
    for song in songs().values():
        for pace in PACES:
            path, begins = np.full(FRAMES, NOTHING), []
            for start, length, pitch in song.notes:
                first, last = ((START + 60 / pace * time) * RATE / HOP for time in (start, start + LEGATO * length))
                frame = int(np.ceil(first - 0.3))
                path[frame : max(int(np.ceil(last + 0.2)), frame + 1)] = pitch
                if first < FRAMES - 1:
                    begins.append((frame, pitch))
            paths.append(path)
            begins += [(0, NOTHING)] * (MOST - len(begins))
            times.append([frame for frame, _ in begins])
            pitches.append([pitch for _, pitch in begins])
    return Places.of(np.array(paths), np.arange(FRAMES)), Places.of(np.array(pitches), np.array(times))


def match(roll: np.ndarray) -> Matched:
    """A voice's roll (54, frames) -> its melody. Likeness is the mean of two cosines: of loudness with a path that is
    one wherever the melody is, and of rises of loudness with one that is one wherever a note begins."""
    loud = np.sqrt(roll[:, :FRAMES])
    loud = np.pad(loud, ((0, 0), (0, FRAMES - loud.shape[1])))
    rise = np.pad(np.clip(loud[:, 2:] - loud[:, :-2], 0, None), ((0, 0), (1, 1)))
    rise[:, 0] = loud[:, 1]
    wide = np.maximum(rise, np.maximum(np.roll(rise, 1, 1), np.roll(rise, -1, 1)))  # a frame early or late is as good
    sounds, begins = _scores()
    along = sounds.sums(loud, HOMES) / (np.sqrt((loud**2).sum()) + 1e-9)
    begun = begins.sums(wide, HOMES) / (np.sqrt((wide.max(axis=0) ** 2).sum()) + 1e-9)
    found = (along + begun) / 2  # (homes, K)
    names = list(songs())
    home, row = np.unravel_index(int(found.argmax()), found.shape)
    by_song = found.max(axis=0).reshape(len(names), len(PACES)).max(axis=1)
    likeness = {name: float(min(value, 1.0)) for name, value in zip(names, by_song, strict=True)}
    return Matched(names[row // len(PACES)], float(PACES[row % len(PACES)]), int(HOMES[home]), likeness)


def key_of(rolls: np.ndarray) -> tuple[str, float]:
    """The key, of MelodyWorld's twelve, whose profile is most like the pitch classes that sound in rolls (voices, 54,
    frames), and by how much more than any other's: correlations (Krumhansl and Schmuckler)."""
    chroma = np.zeros(12)
    np.add.at(chroma, np.asarray(PITCHES) % 12, np.sqrt(rolls).sum(axis=(0, 2)))
    if chroma.max() <= 0:
        return "C major", 0.0
    found = {
        f"{tonic} {mode}": float(np.corrcoef(chroma, np.roll(profile, offset))[0, 1])
        for mode, profile in PROFILES.items()
        for tonic, offset in TONICS.items()
    }
    first, second = sorted(found, key=lambda key: -found[key])[:2]
    return first, found[first] - found[second]
