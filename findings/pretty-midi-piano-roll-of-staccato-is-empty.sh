#!/usr/bin/env bash
# pretty_midi's piano roll of a staccato melody is empty, and a drum track's always is.
#
# Expected: get_piano_roll(fs=8), one column a sixteenth at 120 beats a minute, marks each note in the column that it
#   begins in, at least.
# Seen: A note is marked from the column of its start up to, not with, that of its end, and has none if both are one: of
#   16 eighths played staccato (0.1 s long) none is left, of 100 notes of 0.07 s, begun at any time, 42 are missing. At
#   fs=100 all are there. A drum track is all zeros at any rate, and two notes of velocity 100 that overlap are one of
#   200, above MIDI's 127. get_chroma is empty with the roll. Nothing is said.
# Versions: pretty_midi 0.2.11.post0, numpy 2.4.6.
# Harm: Rolls at a grid's rate are what models of music are trained on, and metrics of note density, silence and key
#   computed from: short notes and all drums are missing there, and a good staccato bass scores as silence.
# genalign: It keeps its notes as notes, and has no rolls by pretty_midi.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pretty_midi==0.2.11.post0 numpy==2.4.6 setuptools==80.9.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from pretty_midi import Instrument, Note, PrettyMIDI

print("pretty_midi", version("pretty_midi"), "numpy", np.__version__)


def track(notes, is_drum=False):
    """A piece of one instrument, from (velocity, pitch, start, end)."""
    piece = PrettyMIDI(initial_tempo=120)
    piece.instruments.append(Instrument(0, is_drum=is_drum))
    piece.instruments[0].notes = [Note(*note) for note in notes]
    return piece


starts = np.random.default_rng(0).uniform(0, 1, 100) + 1.5 * np.arange(100)
staccato = track([(90, 60 + k % 12, 0.25 * k, 0.25 * k + 0.1) for k in range(16)])
free = track([(90, 60 + k % 12, start, start + 0.07) for k, start in enumerate(starts)])
drums = track([(90, 36, 0.5 * k, 0.5 * k + 0.25) for k in range(8)], is_drum=True)
overlap = track([(100, 60, 0.0, 1.0), (100, 60, 0.5, 2.0)])


def notes_left(piece, rate):
    """How many notes have a mark in the columns around their start."""
    roll = piece.get_piano_roll(fs=rate)
    notes = piece.instruments[0].notes
    return sum(bool(roll[n.pitch, int(n.start * rate) : int(n.end * rate) + 1].any()) for n in notes)


left = {(name, rate): notes_left(piece, rate)
        for name, piece in {"staccato": staccato, "free": free, "drums": drums}.items() for rate in (100, 8)}
for (name, rate), count in left.items():
    print(f"{name}, {rate} columns a second: {count} notes are there")
chroma = staccato.get_chroma(fs=8).max()
loudest = overlap.get_piano_roll(fs=8).max()
print("chroma of staccato at 8:", chroma, "- two overlapping notes of velocity 100:", loudest)
seen = [left["staccato", 100], left["staccato", 8], left["free", 100], left["drums", 100], left["drums", 8]]
still = seen == [16, 0, 100, 0, 0] and 30 < left["free", 8] < 80 and chroma == 0 and loudest == 200
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
