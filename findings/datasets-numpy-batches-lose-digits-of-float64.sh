#!/usr/bin/env bash
# A float64 column of datasets is float64 row by row, and float32 as a batch of numpy arrays.
#
# Expected: with_format("numpy") gives a column in the type that its features name, in a batch as in a row.
# Seen: A single row has float64; a slice, a column and a batch of map have float32. Times of a day in 2026, in
#   seconds since 1970, become multiples of 128: 60 clips that begin a second apart have one time. Lists of float64
#   lose their digits in a row, too. A map that computes with the column is right row by row, and wrong with
#   batched=True. pandas and plain lists keep all. Nothing is said.
# Versions: datasets 5.2.0, numpy 2.4.6.
# Harm: Times and positions in long recordings, log-probabilities summed over a text and differences of large scores
#   lose their digits, in map(batched=True) and not in map; clips are cut at wrong places.
# genalign: Reads JSON lines itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0 numpy==2.4.6 pandas==2.3.3
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import datasets
import numpy as np

print("datasets", version("datasets"), "numpy", np.__version__)
datasets.disable_progress_bars()
begin = 1_796_000_000.0
times = [begin + second for second in range(60)]
data = datasets.Dataset.from_dict({"time": times, "span": [[time, time + 1] for time in times]})
print(data.features)
rows = data.with_format("numpy")
kinds = {
    "one row": rows[0]["time"].dtype, "a slice": rows[:]["time"].dtype, "the column": rows["time"][:].dtype,
    "a list in one row": rows[0]["span"].dtype,
}
print({name: str(kind) for name, kind in kinds.items()})


def since(batch):
    return {"since": batch["time"] - begin}


different = {}
for name, table in {"plain": data, "numpy": rows}.items():
    different[name, "slice"] = len(set(map(float, table[:]["time"])))
for batched in (False, True):
    different["numpy", f"map, batched={batched}"] = len(set(rows.map(since, batched=batched).with_format(None)["since"]))
different["pandas", "slice"] = data.with_format("pandas")[:]["time"].nunique()
print("different times of 60:", different)
still = [str(kind) for kind in kinds.values()] == ["float64", "float32", "float32", "float32"]
still = still and different.pop(("numpy", "slice")) < 4 and different.pop(("numpy", "map, batched=True")) < 4
still = still and set(different.values()) == {60}
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
