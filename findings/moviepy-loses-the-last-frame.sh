#!/usr/bin/env bash
# moviepy loses or repeats frames of a clip that was made of frames.
#
# Expected: ImageSequenceClip of n frames at f a second, gone through at f a second as write_videofile does, gives those n
#   frames, each once.
# Seen: At 24 a second the last frame is missing in 58 of the clips of 1 to 99 frames, at 25 in 43, at 30 in 41; at 23.976
#   others come twice in its place: durations and places in time are floating-point numbers that are rounded down. At 8
#   and 16 a second, which are exact in binary, all is right.
# Versions: moviepy 2.2.1, numpy 2.4.6.
# Harm: Clips that trackers write through it (W&B does) are shorter than what was judged, and a frame count that an
#   autoencoder needs (1 + 4 k) is lost between writing and reading.
# genalign: It writes frames by PyAV, one packet each.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile moviepy==2.2.1 numpy==2.4.6 imageio==2.38.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from moviepy import ImageSequenceClip

print("moviepy", version("moviepy"))
wrong = {}
for fps in (8, 16, 23.976, 24, 25, 30):
    found = []
    for count in range(1, 100):
        frames = [np.full((2, 2, 3), k, np.uint8) for k in range(count)]
        seen = [int(frame[0, 0, 0]) for frame in ImageSequenceClip(frames, fps=fps).iter_frames(fps=fps)]
        if seen != list(range(count)):
            found.append((count, len(seen), len(set(range(count)) - set(seen))))
    wrong[fps] = len(found)
    first = " (of {0} frames there are {1}, and {2} is missing)".format(*found[0]) if found else ""
    print(f"{fps} a second: wrong for {len(found)} of 99 lengths{first}")
still = wrong[8] == wrong[16] == 0 and min(wrong[24], wrong[25], wrong[30], wrong[23.976]) > 20
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
