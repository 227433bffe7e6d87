#!/usr/bin/env bash
# pretty_midi reads two overlapping notes of one pitch otherwise than it wrote them: both end where the first ends.
#
# Expected: Notes from 0 to 2 s and from 1 to 3 s, written and read again, are these two; the file holds an end for
#   each.
# Seen: They are 0 to 2 s and 1 to 2 s. The first end closes all notes of the pitch that sound, and the second end is
#   left without a note and ignored. symusic reads both from the same file.
# Versions: pretty_midi 0.2.11, symusic 0.6.0, numpy 2.4.6.
# Harm: Music that was played with a pedal, and what models write, has such notes in one instrument. Lengths change by a
#   round trip alone, and two packages that judge one file judge two pieces.
# genalign: MelodyWorld keeps its notes and reads no MIDI.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pretty_midi==0.2.11 symusic==0.6.0 numpy==2.4.6 'setuptools<81'
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import pretty_midi
import symusic

print("pretty_midi", version("pretty_midi"), "symusic", version("symusic"))


def round_trip(*spans: tuple[float, float]) -> tuple[list, list]:
    music = pretty_midi.PrettyMIDI(initial_tempo=120, resolution=480)
    piano = pretty_midi.Instrument(0)
    piano.notes = [pretty_midi.Note(100, 60, start, end) for start, end in spans]
    music.instruments = [piano]
    music.write("notes.mid")
    again = pretty_midi.PrettyMIDI("notes.mid").instruments[0].notes
    other = symusic.Score("notes.mid", ttype="second").tracks[0].notes
    first = [(round(float(note.start), 3), round(float(note.end), 3)) for note in again]
    return first, [(round(note.time, 3), round(note.time + note.duration, 3)) for note in other]


overlap, other = round_trip((0, 2), (1, 3))
print(f"written (0, 2) and (1, 3); read by pretty_midi: {overlap}, by symusic: {other}")
apart, _ = round_trip((0, 1), (1, 3))
print(f"written (0, 1) and (1, 3); read by pretty_midi: {apart}")
still = overlap == [(0, 2), (1, 2)] and other == [(0, 2), (1, 3)] and apart == [(0, 1), (1, 3)]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
