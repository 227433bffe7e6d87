#!/usr/bin/env bash
# pretty_midi renders a melody played very softly and one played very loudly to the same wave.
#
# Expected: synthesize() of notes with velocity 20 is softer than of the same notes with velocity 120.
# Seen: The wave is divided by its own largest value, so both are equal to the last bit but rounding. Within one melody
#   velocities do count. fluidsynth() of the package divides in the same way (read in its source, not run here).
# Versions: pretty_midi 0.2.11, numpy 2.4.6.
# Harm: Who renders captioned music ("a soft piano melody") by it makes a data set whose dynamics are all alike, and a
#   reward of loudness or a model trained on that sees nothing.
# genalign: MelodyWorld mixes recorded notes itself and scales by dynamics alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile "setuptools<81" numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-compile pretty_midi==0.2.11
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import pretty_midi

print("pretty_midi", pretty_midi.__version__)


def rendered(velocity: int) -> np.ndarray:
    piano = pretty_midi.Instrument(program=0)
    for k, pitch in enumerate((60, 64, 67, 72)):
        piano.notes.append(pretty_midi.Note(velocity, pitch, k * 0.5, k * 0.5 + 0.45))
    song = pretty_midi.PrettyMIDI()
    song.instruments.append(piano)
    return song.synthesize(fs=16000)


soft, loud = rendered(20), rendered(120)
print(f"peaks: velocity 20 {np.abs(soft).max():.3f}, velocity 120 {np.abs(loud).max():.3f}")
print(f"largest difference of the two waves: {np.abs(soft - loud).max():.1e}")
still = np.abs(soft - loud).max() < 1e-9 and np.abs(soft).max() > 0.99
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
