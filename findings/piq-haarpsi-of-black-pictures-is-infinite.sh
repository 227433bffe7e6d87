#!/usr/bin/env bash
# piq's HaarPSI of two black pictures is infinite.
#
# Expected: The similarity of a picture to itself is 1, as for SSIM, FSIM and VSI of two black pictures.
# Seen: A small number is added above and below a weighted mean of logistic values, which with no weights at all makes
#   it 1, whose inverse is infinite. Two black pictures have inf, two white or grey ones 1.000004; HaarPSILoss is
#   -inf, and its gradient NaN. Of a fade of 20 frames from black the mean is inf. One pixel of light makes it 1
#   again. Nothing is said.
# Versions: piq 0.8.0, torch 2.14.1.
# Harm: A mean over the frames of a clip or over a test set is infinite by one frame. As a reward it is the best there
#   is, for a black picture; as a loss it ends a training at its least value.
# genalign: It ships no HaarPSI. A score that is not finite masks its row.
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
torch.set_num_threads(1)
black = torch.zeros(1, 3, 96, 96)
speck = black.clone()
speck[..., 48, 48] = 1.0
pictures = {"black": black, "grey": black + 0.5, "white": black + 1.0, "black with one white pixel": speck}
own = {}
for name, picture in pictures.items():
    others = {f.__name__: f(picture, picture).item() for f in (piq.ssim, piq.fsim, piq.vsi)}
    own[name] = piq.haarpsi(picture, picture).item()
    print(f"{name}: HaarPSI of itself {own[name]:.6f}; others", others)
    assert all(abs(value - 1) < 1e-5 for value in others.values())
fade = torch.linspace(0, 1, 20).view(-1, 1, 1, 1) * torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
mean = piq.haarpsi(fade, 0.9 * fade).item()
rest = piq.haarpsi(fade[1:], 0.9 * fade[1:]).item()
drawn = black.clone().requires_grad_()
loss = piq.HaarPSILoss()(drawn, black)
(gradient,) = torch.autograd.grad(loss, drawn)
print(f"a fade of 20 frames from black: {mean}, without its first frame {rest:.4f}; loss of black: {loss.item()},"
      f" NaN in its gradient: {bool(gradient.isnan().any())}")
infinite = float("inf")
still = own.pop("black") == mean == infinite and loss.item() == -infinite and bool(gradient.isnan().all())
still = still and all(abs(value - 1) < 1e-4 for value in own.values()) and 0.5 < rest < 1
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
