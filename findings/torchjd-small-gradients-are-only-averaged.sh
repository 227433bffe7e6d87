#!/usr/bin/env bash
# TorchJD's UPGrad averages small gradients, and the step then harms one of the objectives.
#
# Expected: UPGrad and DualProj never give a direction that conflicts with an objective (its gradient times the direction
#   is not negative), and scale with the gradients: a thousandth of all gradients gives a thousandth of the direction.
# Seen: Where all gradients together have a norm below 0.01, the projection is skipped and the plain mean is returned: the
#   conflict is left as it is, without a warning. The limit is the eps that keeps a division from being one by zero, 1e-4,
#   compared with a sum of squares. The same matrix times 0.005 is projected, and times 0.004 averaged.
# Versions: torchjd 0.18.0.
# Harm: Gradients of LoRA weights, of losses that are means over many pixels or tokens, and all gradients late in a
#   training are that small. The method that was chosen to protect the weaker reward turns itself off just there.
# genalign: Weighs rewards before the gradient, in advantages, which have a spread of 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchjd==0.18.0 qpsolvers==4.13.0 quadprog==0.1.14
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torchjd.aggregation import DualProj, UPGrad

print("torch", torch.__version__, "torchjd", version("torchjd"))
gradients = torch.tensor([[1.0, 0.0], [-2.0, 0.1]])  # of two objectives that conflict
still = True
for method in (UPGrad, DualProj):
    for scale, averaged in ((1.0, False), (0.1, False), (0.005, False), (0.004, True), (1e-4, True)):
        direction = method()(gradients * scale) / scale
        first = float(gradients[0] @ direction)
        mean = torch.allclose(direction, gradients.mean(0), rtol=1e-3)
        print(f"{method.__name__}, times {scale}: direction / scale {[round(x, 4) for x in direction.tolist()]},"
              f" first objective gains {first:.4f}{', the plain mean' if mean else ''}")
        still = still and mean == averaged and (first < -0.4) == averaged

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
