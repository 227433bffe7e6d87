#!/usr/bin/env bash
# export_to_video changes the picture's size, export_to_gif the clip's speed.
#
# Expected: A clip exported at W x H and fps comes back at W x H and fps.
# Seen: export_to_video scales each side up to the next multiple of 16 (100x100 becomes 112x112, 72x40 becomes
#   80x48). GIF stores whole hundredths of a second, rounded down: 24 fps becomes 25, 30 becomes 33.3 and 60
#   becomes 100.
# Versions: diffusers 0.42.1, imageio 2.38.1, imageio-ffmpeg 0.8.1, Pillow 12.0.0.
# Harm: Rewards that read the exported file (motion, flicker, text, sharpness) judge a rescaled clip at another
#   speed than the policy made, and pairs for voters run at different speeds.
# genalign: It does not use these exporters. A user who scores exported files should write PNG frames or pass
#   macro_block_size=1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 \
  imageio==2.38.1 imageio-ffmpeg==0.8.1 pillow==12.0.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import imageio.v3 as imageio
import numpy as np
from diffusers.utils import export_to_gif, export_to_video
from PIL import Image

print("diffusers", diffusers.__version__)
sizes = {}
for width, height in ((100, 100), (72, 40), (64, 48)):
    export_to_video([np.zeros((height, width, 3), np.float32)] * 4, "clip.mp4", fps=8)
    read = imageio.imread("clip.mp4", plugin="FFMPEG").shape
    sizes[width, height] = (read[2], read[1])
    print(f"{width}x{height} is read as {read[2]}x{read[1]}")
speeds = {}
noise = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
for fps in (10, 24, 30, 60):
    export_to_gif([Image.fromarray(frame) for frame in noise], "clip.gif", fps=fps)
    speeds[fps] = round(1000 / Image.open("clip.gif").info["duration"], 1)
    print(f"GIF at {fps} fps runs at {speeds[fps]}")
still = (
    sizes == {(100, 100): (112, 112), (72, 40): (80, 48), (64, 48): (64, 48)}
    and speeds == {10: 10.0, 24: 25.0, 30: 33.3, 60: 100.0}
)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
