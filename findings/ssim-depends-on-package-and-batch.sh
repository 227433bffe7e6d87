#!/usr/bin/env bash
# SSIM of one pair of pictures is 0.37 or 0.85 by package, and 0.60 or 0.92 by batch.
#
# Expected: SSIM (window 11, sigma 1.5) of a pair is one number up to rounding at the borders.
# Seen: piq halves a 512-pixel picture first and says 0.85 where torchmetrics, kornia's formula and pytorch-
#   msssim say 0.37. torchmetrics without data_range takes the range of the batch's values: a pair of low
#   contrast has 0.60 alone and 0.92 beside a picture of full range.
# Versions: torchmetrics 1.9.0, piq 0.8.0, pytorch-msssim 1.0.0.
# Harm: SSIM rewards and similarity terms (identity, editing, video consistency) move with the batch's other
#   samples, so advantages are wrong; numbers from two packages cannot be compared.
# genalign: No SSIM reward is shipped. One that is added needs data_range=1 and a test of a row alone against
#   the batch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 torchmetrics==1.9.0 piq==0.8.0 pytorch-msssim==1.0.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import piq
import pytorch_msssim
import torch
import torchmetrics
from torch.nn.functional import interpolate
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

print("torchmetrics", torchmetrics.__version__, "piq", piq.__version__)
torch.manual_seed(0)
smooth = interpolate(torch.rand(1, 3, 32, 32), (512, 512), mode="bicubic").clamp(0, 1)
noisy = (smooth + 0.1 * torch.randn_like(smooth)).clamp(0, 1)
found = {
    "torchmetrics": ssim(smooth, noisy, data_range=1.0).item(),
    "pytorch-msssim": pytorch_msssim.ssim(smooth, noisy, data_range=1.0).item(),
    "piq": piq.ssim(smooth, noisy).item(),
    "piq, downsample=False": piq.ssim(smooth, noisy, downsample=False).item(),
}
for name, value in found.items():
    print(f"{name}: {value:.3f}")
faint = 0.45 + 0.1 * interpolate(torch.rand(1, 3, 8, 8), (64, 64), mode="bicubic").clamp(0, 1)
other = faint + 0.01 * torch.randn_like(faint)
mate = torch.zeros_like(faint)
mate[..., 32:] = 1
alone = ssim(faint, other).item()
beside = ssim(torch.cat([faint, mate]), torch.cat([other, mate]), reduction="none")[0].item()
print(f"torchmetrics without data_range: a faint pair alone {alone:.3f}, beside another pair {beside:.3f}")
still = found["piq"] - found["torchmetrics"] > 0.3 and abs(found["pytorch-msssim"] - found["torchmetrics"]) < 0.02
still = still and beside - alone > 0.2

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
