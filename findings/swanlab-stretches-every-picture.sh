#!/usr/bin/env bash
# swanlab logs a dark picture and a bright one as the same picture.
#
# Expected: swanlab.Image of a tensor in [0, 1] is that picture.
# Seen: Each picture is stretched until its darkest value is 0 and its brightest 1: one at a fifth of the light looks
#   the same to the last level, a flat grey one is black, and grey with one lighter point is black but for that point. A
#   numpy array in [0, 1] is not stretched but cast, so it is black. Nothing is said.
# Versions: swanlab 0.10.3, torch 2.14.1, torchvision 0.29.1.
# Harm: That pictures fade, darken or burn out is the commonest sign of an over-optimised reward. In this log it cannot be
#   seen.
# genalign: It logs numbers of light and saturation beside pictures (`train.monitor`), and hands over 8-bit pictures.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchvision==0.29.1 swanlab==0.10.3 numpy==2.4.6 pillow==11.3.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
import PIL.Image
import swanlab
import torch

print("swanlab", version("swanlab"), "torch", torch.__version__)
picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
given = {
    "a picture": picture,
    "the same at a fifth of the light": 0.2 * picture,
    "flat grey": torch.full((3, 32, 32), 0.5),
    "the picture as a numpy array": picture.permute(1, 2, 0).numpy(),
}
logged = {}
for name, value in given.items():
    levels = np.asarray(PIL.Image.open(swanlab.Image(value).buffer).convert("RGB"))
    logged[name] = levels
    print(f"{name}: levels {levels.min()} to {levels.max()}, mean {levels.mean():.0f}")
bright, dim, grey, array = logged.values()
still = np.array_equal(bright, dim) and grey.max() == 0 and array.max() <= 1
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
