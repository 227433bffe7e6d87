#!/usr/bin/env bash
# pydub's set_frame_rate filters nothing: a tone above the new limit comes back, nearly as loud, as another tone.
#
# Expected: 44.1 kHz sound at 16 kHz holds what was below 8 kHz; a tone of 10 kHz is gone, as after soxr, torchaudio,
#   librosa or FFmpeg.
# Seen: The 10 kHz tone is a tone of 6 kHz with 85% of its amplitude. And a clip taken apart at a whole millisecond and
#   put together again is shorter: what lies beyond the last whole millisecond is dropped (1000 samples at 16 kHz: 992).
# Versions: pydub 0.25.1 (with Python's own audioop, or audioop-lts), numpy 2.4.6, scipy 1.17.1.
# Harm: pydub is what many scripts cut and resample data sets of speech and music with. Cymbals and sibilants become
#   wrong notes; an audio model learns them, a Frechet distance to such exemplars rewards them; cuts lose samples.
# genalign: Resamples once, by a windowed sinc that equals torchaudio's (media/resample.py); exemplars that were resampled
#   elsewhere come as they are.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pydub==0.25.1 numpy==2.4.6 scipy==1.17.1 'audioop-lts; python_version >= "3.13"'
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from pydub import AudioSegment
from scipy.signal import resample_poly

print("pydub", version("pydub"))
RATE, NEW, TONE = 44_100, 16_000, 10_000


def segment(samples: np.ndarray, rate: int) -> AudioSegment:
    return AudioSegment(samples.astype(np.int16).tobytes(), frame_rate=rate, sample_width=2, channels=1)


tone = 16_000 * np.sin(2 * np.pi * TONE * np.arange(RATE) / RATE)
made = np.array(segment(tone, RATE).set_frame_rate(NEW).get_array_of_samples(), dtype=float)
right = resample_poly(tone, NEW, RATE)
spectrum = np.abs(np.fft.rfft(made * np.hanning(len(made))))
loudest = spectrum.argmax() * NEW / len(made)
levels = [float(wave.std() / tone.std()) for wave in (made, right)]
print(f"{TONE} Hz at {NEW} Hz: pydub {loudest:.0f} Hz at {levels[0]:.2f} of its level, scipy {levels[1]:.4f} of its level")

clip = segment(np.arange(1000), NEW)
joined = (clip[:31] + clip[31:]).frame_count()
print(f"a clip of {clip.frame_count():.0f} samples, cut at 31 ms and joined: {joined:.0f} samples")
still = abs(loudest - (NEW - TONE)) < 5 and levels[0] > 0.8 and levels[1] < 0.05 and joined == 992
raise SystemExit(0 if still else "this has changed: pydub filters before it resamples, or keeps the last samples")
PY
