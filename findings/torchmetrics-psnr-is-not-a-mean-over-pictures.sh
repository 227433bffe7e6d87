#!/usr/bin/env bash
# torchmetrics' PSNR of several pictures is not the mean of their PSNRs: the worst picture decides.
#
# Expected: PeakSignalNoiseRatio has reduction="elementwise_mean" and gives, as SSIM beside it does, the mean over the
#   pictures, as most papers do.
# Seen: It is the PSNR of the mean squared error of all pixels of all updates. One picture of 20 dB and one of 40 dB
#   have 22.97 instead of 30. A model with 40 dB on 99 pictures and 10 dB on one has 29.6, and one with 30 dB on all
#   has 30. The reduction does nothing unless dim is given as well; dim=(1, 2, 3) gives the mean.
# Versions: torchmetrics 1.9.0, torch 2.13.0; piq 0.8.0 gives the mean.
# Harm: Autoencoders, codecs and restoration are compared by PSNR. Which model is better depends on the package, and
#   the number of one paper is dB below that of another for the same pictures.
# genalign: The figure of its video autoencoder is of the mean error too, and says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
import torchmetrics
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)


def by_picture(metric, decibels: list[float]) -> float:
    """Each picture off by a checkerboard of just that many decibels, in an update of its own."""
    rows = torch.arange(32)
    signs = ((rows[:, None] + rows) % 2 * 2 - 1).float()
    for value in decibels:
        right = torch.full((1, 3, 32, 32), 0.5)
        metric.update(right + signs * 10 ** (-value / 20), right)
    return float(metric.compute())


psnr = {}
for name, decibels in {"two": [20.0, 40.0], "often better": [40.0] * 99 + [10.0], "even": [30.0] * 100}.items():
    psnr[name] = by_picture(PeakSignalNoiseRatio(data_range=1.0), decibels)
    each = by_picture(PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3)), decibels)
    mean = sum(decibels) / len(decibels)
    print(f"{name}: PSNR {psnr[name]:.2f}, with dim {each:.2f}, mean of the pictures' own {mean:.2f}")
    assert abs(each - mean) < 1e-2
ssim = [by_picture(StructuralSimilarityIndexMeasure(data_range=1.0), some) for some in ([20.0], [40.0], [20.0, 40.0])]
print(f"SSIM of each {ssim[0]:.4f} and {ssim[1]:.4f}, of both {ssim[2]:.4f}: their mean")
assert abs(ssim[2] - (ssim[0] + ssim[1]) / 2) < 1e-5
still = abs(psnr["two"] - 22.967) < 1e-2 and psnr["often better"] < 29.7 < psnr["even"]
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
