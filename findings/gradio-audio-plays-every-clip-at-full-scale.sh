#!/usr/bin/env bash
# gradio's Audio plays every float clip at full scale: a soft one and a loud one sound alike.
#
# Expected: A float wave in [-1, 1] is played as it is, as soundfile and browsers take it.
# Seen: The wave is divided by its own largest value before it is written as 16 bits, so that every clip's peak is 1.
#   The warning speaks of a conversion to 16-bit int alone. An int16 wave is left as it is.
# Versions: gradio 6.31.0, numpy 2.4.6.
# Harm: In a page where people compare generated music, loudness, clipping and near silence cannot be heard: votes about
#   them are noise, and a model that draws noise at -60 dB seems to shout.
# genalign: Sounds are written to files by soundfile before any page plays them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile gradio==6.31.0 numpy==2.4.6 soundfile==0.14.0
cd "$work"
GRADIO_ANALYTICS_ENABLED=False GRADIO_TEMP_DIR="$work/files" "$work/venv/bin/python" -W ignore - <<'PY'
import gradio
import numpy as np
import soundfile as sf

print("gradio", gradio.__version__)
wave = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
peaks = {}
for name, given in (
    ("float32, peak 0.5", (0.5 * wave).astype(np.float32)),
    ("float32, peak 0.001", (0.001 * wave).astype(np.float32)),
    ("int16, peak 0.001", (0.001 * wave * 32767).round().astype(np.int16)),
):
    written = gradio.Audio().postprocess((16000, given)).path
    peaks[name] = float(np.abs(sf.read(written)[0]).max())
    print(f"{name}: played with a peak of {peaks[name]:.3f}")
soft, quiet, whole = peaks.values()
still = soft > 0.99 and quiet > 0.99 and whole < 0.002
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
