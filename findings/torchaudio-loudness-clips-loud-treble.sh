#!/usr/bin/env bash
# torchaudio's loudness clips the sound while it weighs it: loud bright sounds measure up to 2.7 LU too low.
#
# Expected: The measure of BS.1770-4, which its documentation names: twice the amplitude is 6.02 LU more, at any level.
# Seen: The filters that weigh frequencies are run with their default clamp to [-1, 1], and the first of them raises
#   treble by 4 dB: what is above 0.63 there is cut. An 8 kHz tone of amplitude 1 measures -2.45 instead of 0.30, one of
#   0.9 the same -2.46; noise of full scale is 1.6 LU too low. At half the amplitude and below all is right, to 0.001 of
#   pyloudnorm.
# Versions: torchaudio 2.11.1, torch 2.14.1, pyloudnorm 0.2.0, numpy 2.4.6.
# Harm: Generated music is often near full scale. A reward or a data filter by loudness cannot tell loud from too loud,
#   and normalising "to -14 LUFS" by it gives bright tracks that are louder than others.
# genalign: Measures by pyloudnorm.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchaudio==2.11.1 pyloudnorm==0.2.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import math
from importlib.metadata import version

import numpy as np
import pyloudnorm
import torch
import torchaudio

print("torchaudio", torchaudio.__version__, "pyloudnorm", version("pyloudnorm"))
RATE = 48_000
time = np.arange(4 * RATE) / RATE
noise = np.random.default_rng(0).uniform(-1, 1, 4 * RATE)
SOUNDS = {"100 Hz": np.sin(2 * np.pi * 100 * time), "8 kHz": np.sin(2 * np.pi * 8000 * time), "noise": noise}


def measured(wave: np.ndarray) -> tuple[float, float]:
    ours = float(torchaudio.functional.loudness(torch.tensor(wave)[None], RATE))
    return ours, float(pyloudnorm.Meter(RATE).integrated_loudness(wave))


off: dict[str, dict[float, float]] = {}
for name, wave in SOUNDS.items():
    for amplitude in (1.0, 0.9, 0.5, 0.25):
        theirs, standard = measured(amplitude * wave)
        off.setdefault(name, {})[amplitude] = theirs - standard
        print(f"{name}, amplitude {amplitude}: torchaudio {theirs:.3f}, pyloudnorm {standard:.3f}")
quiet = all(abs(off[name][amplitude]) < 2e-3 for name in SOUNDS for amplitude in (0.5, 0.25))
same = abs(measured(SOUNDS["8 kHz"])[0] - measured(0.9 * SOUNDS["8 kHz"])[0]) < 0.05
assert math.isclose(measured(SOUNDS["8 kHz"])[1] - measured(0.5 * SOUNDS["8 kHz"])[1], 6.0206, abs_tol=1e-3)
still = quiet and same and off["8 kHz"][1.0] < -2.5 and off["noise"][1.0] < -1.4 and abs(off["100 Hz"][1.0]) < 2e-3
raise SystemExit(0 if still else "this has changed: loud treble is measured as it is")
PY
