#!/usr/bin/env bash
# moocore's hypervolume leaves a point with a NaN out without a word.
#
# Expected: A NaN among the objectives is refused, or the hypervolume is NaN.
# Seen: NaN compares false with the reference, so the point does not count: the value is that of the other
#   points.
# Versions: moocore 0.3.2.
# Harm: A reward that fails on some samples makes the front look fine, just smaller; a run whose rewards are all
#   NaN has a hypervolume of 0 and stops as "no progress".
# genalign: The hypervolume weighting takes batch means of scored rows only and skips a batch where a part has
#   none; fronts.py gives rows with NaN no rank.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile moocore==0.3.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import moocore
import numpy as np

print("moocore", version("moocore"))
nan = float("nan")
found = {
    "both points": float(moocore.hypervolume(np.array([[0.0, 1.0], [1.0, 0.0]]), ref=[3.0, 3.0])),
    "NaN in the first": float(moocore.hypervolume(np.array([[nan, 1.0], [1.0, 0.0]]), ref=[3.0, 3.0])),
    "second alone": float(moocore.hypervolume(np.array([[1.0, 0.0]]), ref=[3.0, 3.0])),
}
for name, value in found.items():
    print(f"{name}: {value}")
still = found["NaN in the first"] == found["second alone"] != found["both points"]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
