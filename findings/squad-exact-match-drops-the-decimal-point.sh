#!/usr/bin/env bash
# Exact match takes 9.81 for 981, -5 for 5, C++ for C, and vitamin A for any vitamin.
#
# Expected: Exact match forgives case, articles and punctuation around an answer; answers that are other numbers or
#   other names do not match.
# Seen: SQuAD's normalisation deletes every punctuation mark wherever it stands, the decimal point and the minus sign too,
#   and every word "a". torchmetrics' SQuAD gives 100 for all four pairs, and so does the reward that verl trains
#   question answering with search by.
# Versions: torchmetrics 1.9.0, verl 0.9.1.
# Harm: As a measure of reading English sentences it hardly mattered; as the reward of a model that may compute, a factor
#   of a hundred and the wrong sign are right answers, and are learnt.
# genalign: `use: answer` had it for answers in words ("-5 degrees", "C++", choice A); a sign, a decimal point and such
#   marks now count: tests/reward/heads/test_answers.py.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
"$work/venv/bin/pip" install --quiet --no-compile --no-deps verl==0.9.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sysconfig
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location

from torchmetrics.functional.text import squad

print("torchmetrics", version("torchmetrics"), "verl", version("verl"))
# verl imports ray, of which nothing is asked here: the one file is loaded by itself.
file = sysconfig.get_paths()["purelib"] + "/verl/utils/reward_score/search_r1_like_qa_em.py"
spec = spec_from_file_location("search", file)
search = module_from_spec(spec)
spec.loader.exec_module(search)

PAIRS = [("9.81", "981"), ("-5", "5"), ("C++", "C"), ("vitamin A", "vitamin"), ("9.81", "9.82")]
found = []
for given, right in PAIRS:
    match = squad([{"prediction_text": given, "id": "1"}], [{"answers": {"answer_start": [0], "text": [right]}, "id": "1"}])
    reward = search.compute_score(f"<answer>{given}</answer>", {"target": [right]})
    found.append((float(match["exact_match"]), float(reward)))
    print(f"{given} where {right} is right: torchmetrics {found[-1][0]}, verl {found[-1][1]}")
still = found == [(100.0, 1.0)] * 4 + [(0.0, 0.0)]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
