#!/usr/bin/env bash
# Pillow turns a 16-bit grey picture white on the way to RGB.
#
# Expected: convert("RGB") and convert("L") of a 16-bit PNG keep its shades, as a ramp from 0 to 65535 is one from 0 to
#   255.
# Seen: Values are cut off at 255 and not scaled: all but the darkest 0.4% are white. A ramp of 64 shades has two left.
#   Reading is right (mode I;16).
# Versions: pillow 13.0.0, numpy 2.4.6.
# Harm: Depth and height maps, masks and medical pictures are 16-bit PNG, and Image.open(path).convert("RGB") is how
#   most loaders read. A control picture is then plain white, without a message.
# genalign: Reads such pictures by 65535.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pillow==13.0.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__)
ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
Image.fromarray(ramp).save("depth.png")
opened = Image.open("depth.png")
kept = bool((np.asarray(opened) == ramp).all())
found = {mode: np.unique(np.asarray(opened.convert(mode))).tolist() for mode in ("RGB", "L")}
white = float((np.asarray(opened.convert("L")) == 255).mean())
print(f"opened as {opened.mode}, values kept: {kept}; converted: {found}, {white:.0%} white; expected 64 shades")
still = kept and all(values == [0, 255] for values in found.values()) and white > 0.98

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
