#!/usr/bin/env bash
# rouge-score gives a text that is not in Latin letters 0 against itself.
#
# Expected: ROUGE of a text against itself is 1, whatever it is written in.
# Seen: The default tokenizer keeps a to z and digits and drops all else: Chinese and Russian texts have no words left and
#   score 0, and German words fall apart at every umlaut ("schön" shares nothing with itself but "sch" and "n").
# Versions: rouge-score 0.1.2.
# Harm: As a reward or a held-out measure of a multilingual model it is 0 for all answers of a prompt, so nothing is
#   learnt there and no error is seen; the ROUGE of Hugging Face's evaluate is this package.
# genalign: It has no ROUGE; a rule in a file picks its own tokenizer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile rouge-score==0.1.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from rouge_score import rouge_scorer

print("rouge-score", version("rouge-score"))
scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"])
texts = {"English": "the red apple", "Chinese": "红色的苹果", "Russian": "красное яблоко"}
own = {name: scorer.score(text, text)["rougeL"].fmeasure for name, text in texts.items()}
for name, value in own.items():
    print(f"{name} against itself: {value}")
plain = scorer.score("schön", "schon")["rouge1"].fmeasure
parts = scorer.score("schön", "sch n")["rouge1"].fmeasure
print(f"German: 'schön' against 'schon' {plain}, against 'sch n' {parts}")
still = own == {"English": 1.0, "Chinese": 0.0, "Russian": 0.0} and (plain, parts) == (0.0, 1.0)
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
