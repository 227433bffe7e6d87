#!/usr/bin/env bash
# piq's losses give NaN gradients for a picture with one small black or flat patch.
#
# Expected: GMSDLoss, FSIMLoss and their kind, made for training, have finite gradients where their value is finite.
# Seen: Six of them take the square root of a gradient's square: where the picture is flat it is 0, and the root's
#   derivative infinite. A black patch of 4 x 4 pixels (of 96 x 96) gives NaN for its pixels in GMSD, multi-scale GMSD,
#   FSIM, VSI, MDSI and SR-SIM, one of 16 x 16 in DSS too, and a grey or white patch does so from 4 to 12 pixels on. The
#   losses themselves look right. SSIM and HaarPSI are finite. Nothing is said.
# Versions: piq 0.8.0, torch 2.14.1.
# Harm: Clamped skies, letter boxes and black backgrounds are flat. One such picture makes the gradient of all weights
#   behind it NaN, and the next step the model itself, while every logged loss was finite.
# genalign: It ships none of these. With such a reward updates whose gradient is not finite are left out, each with a
#   warning.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchvision==0.29.1 piq==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import piq
import torch

print("torch", torch.__version__, "piq", piq.__version__)
generator = torch.Generator().manual_seed(0)
target = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 96, 96, generator=generator), 5, 1, 2)
target = (target - target.min()) / (target.max() - target.min())
noisy = (target + 0.05 * torch.randn(target.shape, generator=generator)).clamp(0, 1)
losses = {
    "GMSD": piq.GMSDLoss(), "multi-scale GMSD": piq.MultiScaleGMSDLoss(), "FSIM": piq.FSIMLoss(),
    "VSI": piq.VSILoss(), "MDSI": piq.MDSILoss(), "SR-SIM": piq.SRSIMLoss(), "DSS": piq.DSSLoss(),
    "SSIM": piq.SSIMLoss(), "HaarPSI": piq.HaarPSILoss(),
}
patches = {"none": (0, 0.0), "4 x 4 black": (4, 0.0), "12 x 12 white": (12, 1.0), "16 x 16 black": (16, 0.0)}
lost = {}
for name, loss in losses.items():
    for patch, (size, level) in patches.items():
        picture = noisy.clone()
        picture[..., :size, :size] = level
        brightness = torch.ones((), requires_grad=True)  # one weight of the generator of the picture
        shown = brightness * picture
        value = loss(shown, target)
        by_pixel, by_weight = torch.autograd.grad(value, [shown, brightness])
        lost[name, patch] = int((~by_pixel.isfinite()).any(1).sum())
        assert value.isfinite() and bool(by_weight.isfinite()) == (lost[name, patch] == 0)
    counts = ", ".join(f"{patch}: {lost[name, patch]}" for patch in patches)
    print(f"{name}: pixels whose gradient is NaN, by patch: {counts}")
rooted = ["GMSD", "multi-scale GMSD", "FSIM", "VSI", "MDSI", "SR-SIM"]
still = all(lost[name, "4 x 4 black"] == 16 and lost[name, "12 x 12 white"] > 0 for name in rooted)
still = still and lost["DSS", "4 x 4 black"] == 0 and lost["DSS", "16 x 16 black"] == 256
still = still and not any(lost[name, patch] for name in ("SSIM", "HaarPSI") for patch in patches)
still = still and not any(lost[name, "none"] for name in losses)
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
