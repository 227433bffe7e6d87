#!/usr/bin/env bash
# A torchmetrics MetricCollection gives one metric the value of another if both agree on the first batch.
#
# Expected: Each metric of a collection has the value that it has alone.
# Seen: To save work, metrics whose states are equal after the first update are taken for one group, and from then on only
#   the first of them is updated. Equal numbers are enough: an accuracy at threshold 0.5 and one at 0.7 agree on a batch
#   without scores between them, and afterwards both are the one at 0.5: 0.5 instead of 1.0. With compute_groups=False
#   both are right.
# Versions: torchmetrics 1.9.0.
# Harm: Thresholds, margins and ignored classes of one measure are what is swept in a collection. Whether a curve over
#   thresholds is right depends on the first batch, and a small or easy first batch makes it flat.
# genalign: Computes its measures from all scores at once, without collections.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
import torchmetrics
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy

print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
BATCHES = [([0.9, 0.1], [1, 0]), ([0.6, 0.6, 0.6, 0.9], [0, 0, 0, 1])]


def values(collection):
    for scores, labels in BATCHES:
        collection.update(torch.tensor(scores), torch.tensor(labels))
    return {name: round(float(value), 3) for name, value in collection.compute().items()}


def made(**options):
    return MetricCollection({"at 0_5": BinaryAccuracy(threshold=0.5), "at 0_7": BinaryAccuracy(threshold=0.7)}, **options)


together, apart = values(made()), values(made(compute_groups=False))
print("as a collection:", together, "| without groups:", apart)
still = together == {"at 0_5": 0.5, "at 0_7": 0.5} and apart == {"at 0_5": 0.5, "at 0_7": 1.0}

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
