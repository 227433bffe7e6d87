#!/usr/bin/env bash
# Dataset.from_list drops every key that the first row lacks.
#
# Expected: A list of dicts becomes a table with the union of the keys, None where a row lacks one, as
#   load_dataset("json") does for the same rows.
# Seen: Columns are those of the first row; what only later rows have is dropped without a word.
# Versions: datasets 5.2.0.
# Harm: Preference rows with optional keys (a tie, a critique, a second image, a score of one annotator) lose
#   them for the whole set if the first row has none; a reward that reads the column finds nothing.
# genalign: Preference files are read row by row with the json module. A user's Dataset from from_list may have
#   lost its keys before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json

import datasets
from datasets import Dataset, load_dataset

print("datasets", datasets.__version__)
datasets.disable_progress_bars()
rows = [{"prompt": "a"}, {"prompt": "b", "score": 0.5}]
listed = Dataset.from_list(rows)
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
loaded = load_dataset("json", data_files="rows.jsonl", split="train", cache_dir="cache")
print("from_list:", listed.column_names, "| from a file:", loaded.column_names)
still = listed.column_names == ["prompt"] and loaded.column_names == ["prompt", "score"]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
