#!/usr/bin/env bash
# datasets' class_encode_column turns the grades 1 to 10 into labels out of order: 10 comes after 1.
#
# Expected: The labels of a column of integers keep their order: grade g becomes label g - 1.
# Seen: The numbers are made text first and sorted as text: 1, 10, 2, ... 9. Grade 10 is label 1, grade 2 is label 2,
#   and -1 comes before -2. Up to 9 all is right. Nothing is said.
# Versions: datasets 5.2.0.
# Harm: It is the call that train_test_split(stratify_by_column=...) wants first. A reward that is fitted to the labels
#   learns that the best grade is nearly the worst: labels and grades correlate by 0.56 instead of 1.
# genalign: Reads grades as the numbers that they are.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0 numpy==2.4.6 pandas==3.1.1
cd "$work"
HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import datasets
import numpy as np

print("datasets", datasets.__version__)


def labels(grades: list[int]) -> list[int]:
    table = datasets.Dataset.from_dict({"grade": grades}).class_encode_column("grade")
    print(grades, "->", table["grade"][:], "names", table.features["grade"].names)
    return table["grade"][:]


nine, ten, signed = labels(list(range(1, 10))), labels(list(range(1, 11))), labels([-2, -1, 0, 1, 2])
print(f"rank correlation of grades and labels: {np.corrcoef(range(10), ten)[0, 1]:.2f}")
still = nine == list(range(9)) and ten == [0, 2, 3, 4, 5, 6, 7, 8, 9, 1] and signed == [1, 0, 2, 3, 4]
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
