#!/usr/bin/env bash
# torchdiffeq's adaptive solvers solve a row the less exactly the larger its batch is.
#
# Expected: With rtol = atol = 1e-5 each row of a batch is solved to about 1e-5, and alone as in a batch.
# Seen: The error that is held under the tolerance is the root mean square over all elements of the batch. A row that is
#   harder than the others has an error of 1.6e-5 alone, 3.9e-4 among 100 and 3.2e-3 among 10,000: it grows with the
#   root of the batch size. Its result changes with the other rows, too.
# Versions: torchdiffeq 0.2.5, torch 2.13.0.
# Harm: Samples and likelihoods of flow models are computed by dopri5 in batches. The hard rows, which are the outliers
#   that likelihoods are for, are the wrong ones, and two batch sizes give two results.
# genalign: Samples by fixed steps; a row does not depend on its batch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torchdiffeq==0.2.5
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import math
from importlib.metadata import version

import torch
from torchdiffeq import odeint

print("torch", torch.__version__, "torchdiffeq", version("torchdiffeq"))


def field(time: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The first row is exp(sin 30 t), all others decay."""
    return torch.cat([30 * torch.cos(30 * time) * rows[:1], -rows[1:]])


times = torch.tensor([0.0, 1.0], dtype=torch.float64)
error = {}
for size in (1, 100, 10_000):
    rows = odeint(field, torch.ones(size, 1, dtype=torch.float64), times, rtol=1e-5, atol=1e-5, method="dopri5")[-1]
    error[size] = abs(float(rows[0, 0]) - math.exp(math.sin(30.0)))
    print(f"batch of {size}: the first row is off by {error[size]:.1e}")
still = error[1] < 3e-5 and error[100] > 10 * error[1] and error[10_000] > 100 * error[1]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
