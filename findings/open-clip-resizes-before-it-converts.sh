#!/usr/bin/env bash
# open_clip's preprocessing of palette and bilevel pictures depends on their file's mode.
#
# Expected: A picture gets one embedding, whether its file stores RGB or a palette.
# Seen: open_clip resizes first and converts to RGB afterwards. Pillow resizes palette and bilevel pictures by
#   nearest neighbour, whatever filter is asked for, so the same colours give other input: 8 levels (of 255) on
#   average for a palette, over 100 for a bilevel drawing. transformers converts first and is unaffected.
# Versions: open_clip_torch 3.3.0, transformers 5.24.0, Pillow 12.0.0.
# Harm: PNG with a palette and GIF frames are common in data sets of drawings, logos and pixel art, and export
#   tools write them; CLIP, PickScore and aesthetic rewards then judge aliased pictures, and compare them with
#   RGB ones.
# genalign: Files are read as RGB (from_pil, transparency laid on white) before any head sees them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 open_clip_torch==3.3.0 transformers==5.24.0 pillow==12.0.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import open_clip
import PIL
import torch
import transformers
from open_clip.transform import image_transform
from PIL import Image

print("open_clip", open_clip.__version__, "transformers", transformers.__version__, "Pillow", PIL.__version__)
pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
picture = Image.fromarray(pixels).resize((512, 512), Image.Resampling.BICUBIC)
levels = 255 * torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]  # undoes the normalisation
readers = {
    "open_clip": image_transform(224, is_train=False),
    "transformers": lambda image: transformers.CLIPImageProcessor()(image, return_tensors="pt").pixel_values[0],
}
apart = {}
for reader, read in readers.items():
    for kind, stored in {"palette": picture.quantize(256), "bilevel": picture.convert("1")}.items():
        apart[reader, kind] = ((read(stored) - read(stored.convert("RGB"))) * levels).abs().mean().item()
        print(f"{reader}, {kind} against its own RGB: {apart[reader, kind]:.1f} levels on average")
still = (
    apart["open_clip", "palette"] > 3 and apart["open_clip", "bilevel"] > 50
    and apart["transformers", "palette"] == apart["transformers", "bilevel"] == 0
)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
