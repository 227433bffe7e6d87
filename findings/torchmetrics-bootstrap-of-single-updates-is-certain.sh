#!/usr/bin/env bash
# torchmetrics' BootStrapper is certain of a mean to nine digits if it is updated sample by sample.
#
# Expected: The standard deviation over bootstrap samples of the mean of 200 numbers of spread 1 is about 0.07, however
#   the numbers were handed over.
# Seen: Each update is resampled by itself. With "multinomial", the sampling of the textbook, an update of one number
#   always draws that number: the standard deviation is 1e-9. With updates of two it is 0.7 of the right one. "poisson"
#   is right at every size.
# Versions: torchmetrics 1.9.0.
# Harm: Rewards and scores are often computed picture by picture, and updates of two are pairs. The error bar beside a mean
#   is zero, or too small, and every difference between two models looks sure.
# genalign: Its intervals resample prompts, all at once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
import torchmetrics
from torchmetrics import MeanMetric
from torchmetrics.wrappers import BootStrapper

print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
torch.manual_seed(0)
numbers = torch.randn(200)
right = float(numbers.std()) / 200**0.5
found = {}
for strategy in ("multinomial", "poisson"):
    for size in (1, 2, 100):
        metric = BootStrapper(MeanMetric(), num_bootstraps=100, sampling_strategy=strategy)
        for batch in numbers.split(size):
            metric.update(batch)
        found[strategy, size] = float(metric.compute()["std"]) / right
        print(f"{strategy}, updates of {size}: {found[strategy, size]:.3f} of the standard error {right:.4f}")
alone, pair = found.pop(("multinomial", 1)), found.pop(("multinomial", 2))
still = alone < 1e-3 and 0.55 < pair < 0.85 and all(0.8 < ratio < 1.25 for ratio in found.values())

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
