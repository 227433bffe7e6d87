#!/usr/bin/env bash
# torchmetrics' VIF gives noisy pictures in [0, 1] a fidelity of nearly 1.
#
# Expected: Visual information fidelity of float pictures in [0, 1], the usual range of float pictures, is that of the
#   same pictures in [0, 255].
# Seen: The variance of the eye's noise is 2, in grey levels of 255, and there is no range to give. In [0, 1] that
#   noise drowns the picture: strong noise (0.1 of the range) has 0.97 instead of 0.14 and a blur of 7 x 7 pixels 0.39
#   instead of 0.31, so that the noisy picture is far better, where it is far worse. The documentation gives no range,
#   and its example takes randn. piq's vif_p, which asks for the range, has the right order. Nothing is said.
# Versions: torchmetrics 1.9.0, piq 0.8.0, torch 2.14.1.
# Harm: Restoration and super-resolution models that are chosen or rewarded by it are rewarded for noise.
# genalign: It ships no VIF.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchvision==0.29.1 torchmetrics==1.9.0 piq==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import piq
import torch
import torchmetrics
from torchmetrics.functional.image import visual_information_fidelity

print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__, "piq", piq.__version__)
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
target = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 128, 128, generator=generator), 9, 1, 4)
target = (target - target.min()) / (target.max() - target.min())
pictures = {
    "the target": target,
    "with noise of 0.1": (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1),
    "blurred by 7 x 7": torch.nn.functional.avg_pool2d(target, 7, 1, 3),
}
fidelity = {}
for name, picture in pictures.items():
    unit = visual_information_fidelity(picture, target).item()
    levels = visual_information_fidelity(255 * picture, 255 * target).item()
    other = piq.vif_p(picture, target, data_range=1.0).item()
    fidelity[name] = unit, levels, other
    print(f"{name}: {unit:.3f} in [0, 1], {levels:.3f} in [0, 255]; piq {other:.3f}")
same, noisy, blurred = fidelity.values()
still = noisy[0] > 0.9 and blurred[0] < 0.5 and min(same) > 0.999
still = still and all(noisy[k] < 0.2 and blurred[k] > 0.25 for k in (1, 2))
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
