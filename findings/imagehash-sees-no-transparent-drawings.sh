#!/usr/bin/env bash
# imagehash finds all black drawings on a transparent ground to be one picture.
#
# Expected: The perceptual hashes of a disc and of a bar differ, on a transparent ground as on a white one.
# Seen: A picture is made grey by dropping its transparency, so a black line on a transparent ground (whose pixels are
#   stored as black) is all black: a disc, a bar and an empty picture have a distance of 0 by all of phash, dhash,
#   average_hash, whash, colorhash and crop_resistant_hash. On white the disc and the bar are 24 to 36 bits of 64
#   apart by the first four. Nothing is said.
# Versions: imagehash 4.3.2, pillow 13.0.0, numpy 2.4.6.
# Harm: Logos, icons, stickers, sprites and signatures have such grounds. Removing near duplicates from a data set of
#   them keeps one of all, and a test for copies of the training set calls every sample a copy.
# genalign: Pictures with transparency are laid on white when they are read.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile imagehash==4.3.2 pillow==13.0.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import imagehash
from PIL import Image, ImageDraw

print("imagehash", version("imagehash"), "pillow", version("pillow"))


def drawings(ground):
    """A disc, a bar and nothing, in black."""
    pictures = [Image.new("RGBA", (64, 64), ground) for _ in range(3)]
    ImageDraw.Draw(pictures[0]).ellipse((5, 5, 40, 40), fill=(0, 0, 0, 255))
    ImageDraw.Draw(pictures[1]).rectangle((30, 8, 60, 56), fill=(0, 0, 0, 255))
    return pictures


apart = {}
for name in ("phash", "dhash", "average_hash", "whash", "colorhash", "crop_resistant_hash"):
    for ground, colour in {"transparent": (0, 0, 0, 0), "white": (255, 255, 255, 255)}.items():
        disc, bar, empty = (getattr(imagehash, name)(picture) for picture in drawings(colour))
        apart[name, ground] = float(disc - bar), float(disc - empty)
    print(f"{name}, from disc to bar and to nothing: on a transparent ground {apart[name, 'transparent']},"
          f" on white {apart[name, 'white']}")
still = all(distances == (0, 0) for (_, ground), distances in apart.items() if ground == "transparent")
still = still and all(apart[name, "white"][0] >= 10 for name in ("phash", "dhash", "average_hash", "whash"))
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
