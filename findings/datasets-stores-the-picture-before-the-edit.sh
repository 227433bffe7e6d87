#!/usr/bin/env bash
# datasets stores a PIL picture that was edited in place as it was before the edit.
#
# Expected: What is given to an Image column is what is read from it: after picture.thumbnail((64, 64)) a picture of
#   64x64.
# Seen: The picture of 512x512. A picture that was opened from a file still names that file after thumbnail, paste,
#   putpixel or a drawing on it, all of which work in place; such a picture is stored as the file, and not as its
#   pixels. It is so in from_dict and in map, without a message; resize and convert return new pictures and are stored
#   right.
# Versions: datasets 5.2.0, pillow 13.0.0, numpy 2.4.6.
# Harm: Boxes and marks drawn on pictures for a judge, masks, crops by paste and smaller sizes are not in the data set,
#   while the answers beside them are about the edited picture.
# genalign: Pictures of a run are written as files from their tensors.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from datasets import Dataset, Features, Image, disable_progress_bars
from datasets import __version__ as version
from PIL import Image as PILImage
from PIL import ImageDraw

print("datasets", version)
disable_progress_bars()
PILImage.fromarray(np.full((512, 512, 3), 255, np.uint8)).save("white.png")


def stored(picture: PILImage.Image) -> PILImage.Image:
    return Dataset.from_dict({"image": [picture]}, features=Features({"image": Image()}))[0]["image"]


small = PILImage.open("white.png")
small.thumbnail((64, 64))
black = PILImage.open("white.png")
black.load()
ImageDraw.Draw(black).rectangle((0, 0, 512, 512), fill=(0, 0, 0))
found = [stored(small).size, np.asarray(stored(black)).mean()]
print(f"thumbnail: given {small.size}, read {found[0]}")
print(f"blacked out: given a mean of {np.asarray(black).mean()}, read {found[1]}")


def shrink(row: dict) -> dict:
    row["image"].thumbnail((64, 64))
    return row


table = Dataset.from_dict({"image": ["white.png"]}).cast_column("image", Image())
found.append(table.map(shrink)[0]["image"].size)
print("thumbnail in map: read", found[2])
right = stored(PILImage.open("white.png").resize((64, 64))).size
print("resize, which is not in place: read", right)
still = found == [(512, 512), 255.0, (512, 512)] and right == (64, 64)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
