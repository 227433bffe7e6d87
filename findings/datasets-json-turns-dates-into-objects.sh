#!/usr/bin/env bash
# A text column of a JSON file that looks like dates is loaded as datetime objects.
#
# Expected: A JSON string is text; load_dataset("json") keeps it.
# Seen: If all strings of a column (in the first block) read as ISO dates, the column becomes a timestamp and
#   rows hold datetime objects; the original spelling (2024-01-01) is gone.
# Versions: datasets 5.2.0.
# Harm: Answers of date and time questions for rule rewards, prompts of a calendar or clock set ("2024-01-01" to
#   be drawn), or ids by date change type: string comparison with a completion is never equal, so the reward is
#   0 for all.
# genalign: JSON lines are read by the json module. With a column of answers from datasets, give features.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json

import datasets
from datasets import load_dataset

print("datasets", datasets.__version__)
datasets.disable_progress_bars()
found = {}
for name, answers in {"dates": ["2024-01-01", "2024-01-02"], "one more": ["2024-01-01", "soon"]}.items():
    with open(f"{name}.jsonl", "w") as file:
        file.writelines(json.dumps({"answer": answer}) + "\n" for answer in answers)
    rows = load_dataset("json", data_files=f"{name}.jsonl", split="train", cache_dir="cache")
    found[name] = rows[0]["answer"]
    print(f"{name}: wrote {answers[0]!r}, read {found[name]!r}")
still = not isinstance(found["dates"], str) and found["one more"] == "2024-01-01"

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
