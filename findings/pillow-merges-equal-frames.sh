#!/usr/bin/env bash
# Nine equal frames saved by Pillow as an animation are one frame, and a pause loses its frames: counts and rates change.
#
# Expected: save_all with nine pictures of 125 ms each makes a file of nine frames, as it does for AVIF and TIFF.
# Seen: In GIF, WebP and APNG successive equal frames become one that lasts longer. A clip that stands still is a single
#   picture (in WebP of duration 0: no animation, no time); of seven frames with two pauses four are left, with 125, 375,
#   250 and 125 ms. imageio, which writes through it, makes two frames of nine. GIF keeps hundredths of a second besides.
# Versions: pillow 11.3.0, imageio 2.38.1, numpy 2.4.6.
# Harm: Whoever reads the clip back (rewards, judges, data sets of clips, a model that needs 1 + 4 k frames) sees fewer
#   frames, evenly spaced as if nothing had been left out: a frozen clip, which a reward of motion should punish, cannot be
#   scored at all, and a pause becomes a jump.
# genalign: Writes clips as mp4 or webm by PyAV; of a GIF it reads the merged frames as often as they last
#   (media/container.py), and a still one is refused as too short.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pillow==11.3.0 imageio==2.38.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io

import imageio
import imageio.v3 as iio
import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__, "imageio", imageio.__version__)
CLIPS = {"still": [100] * 9, "pauses": [10, 100, 100, 100, 200, 200, 250]}


def saved(levels: list[int], kind: str) -> int:
    """How many frames a file of these has."""
    frames = [Image.new("RGB", (16, 16), (level,) * 3) for level in levels]
    file = io.BytesIO()
    frames[0].save(file, format=kind, save_all=True, append_images=frames[1:], duration=125, loop=0)
    file.seek(0)
    with Image.open(file) as read:
        return getattr(read, "n_frames", 1)


still = True
for name, levels in CLIPS.items():
    counts = {kind: saved(levels, kind) for kind in ("GIF", "WEBP", "PNG", "AVIF", "TIFF")}
    print(f"{name}: {len(levels)} frames written, read {counts}")
    merged = 1 + sum(a != b for a, b in zip(levels, levels[1:]))
    still = still and [counts[kind] for kind in ("GIF", "WEBP", "PNG")] == [merged] * 3
    still = still and counts["AVIF"] == counts["TIFF"] == len(levels)
clip = np.zeros((9, 16, 16, 3), np.uint8)
clip[4:] = 200
through = iio.imread(iio.imwrite("<bytes>", clip, extension=".gif", duration=125), extension=".gif", index=None)
print(f"imageio: 9 frames written, {len(through)} read")
raise SystemExit(0 if still and len(through) == 2 else "this has changed: every frame is kept")
PY
