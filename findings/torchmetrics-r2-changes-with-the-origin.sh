#!/usr/bin/env bash
# torchmetrics' R2 of a prediction changes from 0.11 to 0.92 or -0.26 where 1,000 or more is added to all numbers.
#
# Expected: R2 does not change when one number is added to both prediction and target, to float32's digits.
# Seen: The spread is the sum of squares minus the square of the sum, in float32: with a spread of 1 around 1,000 the R2
#   of 500 pairs is 0.125 at once and -0.258 fed one by one, around 10,000 it is 0.0 or 0.92, by the size of the
#   updates; the right one is 0.110 everywhere (scikit-learn, and the same formula with means taken off, in float32 too).
#   ExplainedVariance does the same. Of the package, PearsonCorrCoef of the same numbers is right. Nothing is said.
# Versions: torchmetrics 1.9.0, torch 2.14.1.
# Harm: Scores with a large mean and a small spread (ratings around 1,500, sums of log-probabilities of long texts,
#   years, steps) make a reward model that predicts little look nearly perfect, or a good one useless.
# genalign: It does not use it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchmetrics==1.9.0 numpy==2.4.6 scikit-learn==1.9.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
import torchmetrics
from sklearn.metrics import r2_score

print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
generator = torch.Generator().manual_seed(0)
prediction = torch.randn(500, generator=generator)
target = 0.5 * prediction + torch.randn(500, generator=generator)
seen, truth = {}, {}
for origin in (0, 1_000, 10_000):
    given, wanted = prediction + origin, target + origin
    truth[origin] = r2_score(wanted.double(), given.double())
    for size in (500, 50, 1):
        for metric in (torchmetrics.R2Score(), torchmetrics.ExplainedVariance(), torchmetrics.PearsonCorrCoef()):
            for part in range(0, 500, size):
                metric.update(given[part : part + size], wanted[part : part + size])
            seen[type(metric).__name__, origin, size] = metric.compute().item()
for name in ("R2Score", "ExplainedVariance", "PearsonCorrCoef"):
    for origin in truth:
        values = ", ".join(f"{seen[name, origin, size]:.4f}" for size in (500, 50, 1))
        print(f"{name} around {origin}: {values} in updates of 500, 50 and 1; R2 is {truth[origin]:.4f}")
sizes = (500, 50, 1)
steady = max(abs(value - truth[0]) for value in truth.values()) < 0.001
at_zero = all(abs(seen["R2Score", 0, size] - truth[0]) < 0.001 for size in sizes)
pearson = max(abs(seen["PearsonCorrCoef", origin, size] - seen["PearsonCorrCoef", 0, 500])
              for origin in truth for size in sizes)
off = {origin: max(abs(seen["R2Score", origin, size] - truth[0]) for size in sizes) for origin in truth}
still = steady and at_zero and pearson < 0.001 and off[1_000] > 0.1 and off[10_000] > 0.5
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
