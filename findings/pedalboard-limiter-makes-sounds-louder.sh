#!/usr/bin/env bash
# pedalboard's Limiter makes every sound below its threshold louder, the more the lower the threshold.
#
# Expected: A limiter with a threshold of -20 dB leaves a tone at -40 dB as it is, and keeps a loud one near -20 dB.
# Seen: The tone at -40 dB comes out at -16.25 dB: 23.75 dB of make-up gain, 13.75 dB at the usual threshold of -10 dB
#   and 3.75 dB at 0 dB, where nothing should happen at all. A loud tone comes out at full scale and clipped, whatever
#   the threshold: it bounds nothing but the peak of 1. The Compressor of the package has no such gain.
# Versions: pedalboard 0.9.26, numpy 2.4.6.
# Harm: Put after generation against clipping, it turns quiet sounds and noise up by as much as 24 dB and clips loud
#   ones. A reward of loudness or of clarity is of the limiter; as an augmentation it undoes the gains before it.
# genalign: Uses no limiter; sounds are judged at the level that was drawn.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pedalboard==0.9.26 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from pedalboard import Compressor, Limiter

print("pedalboard", version("pedalboard"))
RATE = 44_100
time = np.arange(2 * RATE) / RATE


def level(effect, decibels: float) -> tuple[float, float]:
    tone = (10 ** (decibels / 20) * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    settled = effect(tone, RATE)[RATE:].astype(np.float64)
    return 20 * np.log10(np.sqrt(2 * (settled**2).mean())), float((np.abs(settled) > 0.999).mean())


gains = {}
for threshold in (0.0, -10.0, -20.0):
    for decibels in (-60.0, -40.0, -1.0):
        out, clipped = level(Limiter(threshold_db=threshold), decibels)
        gains[threshold, decibels] = out - decibels
        print(f"threshold {threshold} dB: a tone at {decibels} dB is at {out:.2f} dB, {clipped:.0%} of it clipped")
    last = clipped
plain, _ = level(Compressor(threshold_db=-20, ratio=4), -40.0)
print(f"Compressor, threshold -20 dB: -40 dB comes out at {plain:.2f} dB")
wanted = {0.0: 3.75, -10.0: 13.75, -20.0: 23.75}
still = abs(plain + 40) < 0.01 and last > 0.3
still &= all(abs(gains[t, d] - wanted[t]) < 0.1 for t in wanted for d in (-60.0, -40.0))

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
