#!/usr/bin/env bash
# torchvision paints one and the same optical flow in other colours beside another flow.
#
# Expected: flow_to_image takes (N, 2, H, W), and "each color corresponds to a given flow direction": a row gets the
#   colours that it has alone, and a flow ten times as fast gets stronger ones.
# Seen: All rows are divided by the greatest length in the batch. A flow of 1 pixel is strongly coloured alone, and
#   white beside one of 100 pixels, where one pixel of the other row is enough. Alone, a flow of 0.001 pixels (a still
#   camera's noise) and one of 10 are the same picture, to one level. Nothing is said.
# Versions: torchvision 0.29.1, torch 2.14.1.
# Harm: Motion is judged from such pictures, by people and by vision models: of two clips of a pair the slower is shown
#   as still, a still clip alone as moving wildly, and one outlier hides the motion of a whole batch.
# genalign: It paints no flow.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
import torchvision
from torchvision.utils import flow_to_image

print("torch", torch.__version__, "torchvision", torchvision.__version__)
angle = torch.linspace(0, 6.28, 32).expand(32, 32)
flow = torch.stack([angle.cos(), angle.sin()])[None]  # 1 pixel everywhere, in all directions
outlier = torch.zeros_like(flow)
outlier[0, 0, 0, 0] = 100.0
pictures = {
    "alone": flow_to_image(flow)[0],
    "beside itself": flow_to_image(torch.cat([flow, flow]))[0],
    "beside a still flow with one pixel of 100": flow_to_image(torch.cat([flow, outlier]))[0],
    "0.001 times the flow, alone": flow_to_image(0.001 * flow)[0],
    "10 times the flow, alone": flow_to_image(10 * flow)[0],
}
for name, picture in pictures.items():
    colour = (picture.amax(0).int() - picture.amin(0).int()).float().mean()
    print(f"{name}: levels {picture.min()} to {picture.max()}, strength of colour {colour:.0f} of 255")
alone, twice, beside, still_camera, fast = pictures.values()
still = torch.equal(alone, twice) and alone.min() < 20 and beside.min() > 245
still = still and (still_camera.int() - fast.int()).abs().max() <= 1
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
