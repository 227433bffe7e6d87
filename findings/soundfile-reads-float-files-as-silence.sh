#!/usr/bin/env bash
# soundfile reads a float WAV as integers without scaling: every sample becomes 0.
#
# Expected: sf.read(file, dtype="int16") gives samples on the scale of 16 bits, as it does for PCM files.
# Seen: A float file's values, which lie in [-1, 1], are cast as they are: all 0 (or at most 1). Written as PCM
#   the same wave is right. In the other direction an int32 array of 16-bit values is written as near silence.
# Versions: soundfile 0.14.0 with its libsndfile.
# Harm: Sound pipelines and torch tools write float WAVs. A reward or a resampler that asks for int16 (voice
#   activity, music tools) judges silence, every sample gets the same score, and the group's advantage is 0.
# genalign: It works on float32 waves throughout.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soundfile==0.14.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import soundfile as sf

print("soundfile", sf.__version__, "libsndfile", sf.__libsndfile_version__)
wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
peak = {}
for kind in ("PCM_16", "FLOAT"):
    sf.write("wave.wav", wave, 16000, subtype=kind)
    peak[kind] = int(np.abs(sf.read("wave.wav", dtype="int16")[0].astype(int)).max())
    print(f"{kind}: peak as int16 {peak[kind]}, as float {np.abs(sf.read('wave.wav')[0]).max():.3f}")
sf.write("wide.wav", (wave * 32767).astype(np.int32), 16000)
wide = float(np.abs(sf.read("wide.wav")[0]).max())
print(f"16-bit values in an int32 array: peak {wide:.6f}")
still = peak["FLOAT"] <= 1 and peak["PCM_16"] > 16000 and wide < 1e-3

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
