#!/usr/bin/env bash
# The MFCC of a quiet clip in a batch are those of another sound: the loudest clip of the batch sets its floor.
#
# Expected: librosa.feature.mfcc of an array (2, samples), which it takes, gives for each row what the row gives alone.
# Seen: Decibels are floored 80 below the maximum of the whole array. Of a tone of amplitude 0.001 with soft noise,
#   beside a tone of amplitude 1, the first coefficient is -442 instead of -906, and the others are a fifth of what
#   they are alone. power_to_db of a batch of mel spectrograms does the same; these themselves are right. Nothing is
#   said.
# Versions: librosa 0.11.0, numpy 2.4.6, scipy 1.17.1. torchaudio 2.11.1 with torch 2.14.1: the same in transforms.MFCC
#   of waves (B, samples), not of (B, 1, samples).
# Harm: Features, distances and rewards of a generated clip change with what was generated beside it, and those of soft
#   music most. Training at batch size 16 and evaluation at 1 see other features.
# genalign: Computes spectra of each wave alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile librosa==0.11.0 numpy==2.4.6 scipy==1.17.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import librosa
import numpy as np

print("librosa", version("librosa"))
RATE = 22_050
time = np.arange(2 * RATE) / RATE
hiss = np.random.default_rng(0).standard_normal(len(time))
quiet = 1e-3 * np.sin(2 * np.pi * 440 * time) + 1e-5 * hiss
loud = np.sin(2 * np.pi * 880 * time)
features = {
    "mel spectrogram": lambda y: librosa.feature.melspectrogram(y=y, sr=RATE),
    "mel spectrogram in decibels": lambda y: librosa.power_to_db(librosa.feature.melspectrogram(y=y, sr=RATE)),
    "MFCC": lambda y: librosa.feature.mfcc(y=y, sr=RATE),
}
off = {}
for name, feature in features.items():
    alone = feature(quiet)
    for partner, other in {"itself": quiet, "a loud tone": loud}.items():
        row = feature(np.stack([quiet, other]))[0]
        off[name, partner] = np.abs(row - alone).max() / np.abs(alone).max()
        first, own = row.mean(axis=1)[0], alone.mean(axis=1)[0]
        print(f"{name} beside {partner}: differs by {off[name, partner]:.1e} of its largest value; "
              f"the first row is {first:.3g} on average, alone {own:.3g}")
same = all(value < 1e-6 for (name, partner), value in off.items() if partner == "itself" or name == "mel spectrogram")
still = same and off["MFCC", "a loud tone"] > 0.3 and off["mel spectrogram in decibels", "a loud tone"] > 0.3
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
