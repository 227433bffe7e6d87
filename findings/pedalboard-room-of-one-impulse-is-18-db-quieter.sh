#!/usr/bin/env bash
# In pedalboard convolution with a unit impulse is 18 dB quieter, and a dry level of 1 is 6 dB louder.
#
# Expected: Convolution with the impulse response (1, 0, 0, ...) is the sound itself, with (0.5, 0, 0, ...) half of it;
#   Reverb with dry_level 1 and wet_level 0 is the sound itself.
# Seen: Every impulse response is scaled to the same energy, so both impulses give an eighth of the sound (-18.06 dB),
#   and a near and a distant place in a measured room are equally loud. With mix=0.5 the wet part is that much too
#   quiet. Reverb doubles the dry part: 0.5 is the sound itself, 1 is twice it, over full scale.
# Versions: pedalboard 0.9.26, numpy 2.4.6.
# Harm: Rooms and distances put on speech or music as augmentation, or for a reward that should not mind them, change
#   the loudness by fixed wrong amounts, and the one thing that tells distances apart is gone.
# genalign: Ships no rooms.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pedalboard==0.9.26 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from pedalboard import Convolution, Reverb

print("pedalboard", version("pedalboard"))
RATE = 44_100
wave = (0.1 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)


def ratio(effect) -> float:
    out = effect(wave, RATE)[RATE:].astype(np.float64)
    return float(np.sqrt((out**2).mean() / (wave[RATE:].astype(np.float64) ** 2).mean()))


found = {}
for height in (1.0, 0.5, 0.01):
    response = np.zeros(100, np.float32)
    response[0] = height
    found[height] = ratio(Convolution(response, mix=1.0, sample_rate=RATE))
    print(f"convolved with an impulse of {height}: {found[height]:.4f} of the sound")
dry = {share: ratio(Reverb(wet_level=0.0, dry_level=share)) for share in (1.0, 0.5)}
for share, value in dry.items():
    print(f"reverb, dry level {share}, wet level 0: {value:.4f} of the sound")
still = all(abs(value - 0.125) < 1e-3 for value in found.values())
still &= abs(dry[1.0] - 2) < 1e-3 and abs(dry[0.5] - 1) < 1e-3

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
