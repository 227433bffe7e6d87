#!/usr/bin/env bash
# wandb shows a float picture or clip in [0, 1] as black.
#
# Expected: wandb.Image of a float array or tensor in [0, 1], as every tool of this field holds pictures, is that picture, or
#   it is refused; wandb.Video alike.
# Seen: Both cast to uint8 as they are, so all is 0 and 1: black. For pictures nothing is said, for clips one line of log.
#   In [-1, 1], as diffusion models hold them, it is the same.
# Versions: wandb 0.31.0, numpy 2.4.6.
# Harm: A training that logs its samples from tensors shows black pictures, and looks as if it had collapsed.
# genalign: It hands over 8-bit pictures and files.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile wandb==0.31.0 numpy==2.4.6 pillow==11.3.0 moviepy==2.2.1 imageio==2.38.1
cd "$work"
WANDB_MODE=offline WANDB_SILENT=true "$work/venv/bin/python" - <<'PY'
import numpy as np
import PIL.Image
import wandb

print("wandb", wandb.__version__)
wandb.init(project="finding", mode="offline")
clip = np.random.default_rng(0).random((8, 3, 32, 32)).astype(np.float32)  # frames, channels, height, width
levels = (clip * 255).round().astype(np.uint8)
seen = {}
for name, frames in (("float", clip), ("uint8", levels)):
    picture = np.asarray(wandb.Image(frames[0].transpose(1, 2, 0)).image.convert("RGB"))
    moving = wandb.Video(frames, fps=4, format="gif")
    with PIL.Image.open(moving._path) as first:
        played = np.asarray(first.convert("RGB"))
    seen[name] = picture.max(), played.max()
    print(f"{name}: brightest level of the picture {picture.max()}, of the clip {played.max()}; it should be 255 or so")
wandb.finish()
still = max(seen["float"]) <= 1 and min(seen["uint8"]) > 200
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
