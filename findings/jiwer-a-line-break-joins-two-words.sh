#!/usr/bin/env bash
# jiwer takes two words with a line break between them for one, and with an empty line between them for two.
#
# Expected: Any white space parts words, as in str.split; the error of a text against the same text in two lines is 0.
# Seen: Words are parted at spaces only. Four words against the same four in two lines have an error of 0.67, in four
#   lines of 4.0; one tab does the same as one line break. Two breaks together are replaced by a space, so that an
#   empty line between is right. Nothing is said. torchmetrics 1.9.0 gives 0 for all.
# Versions: jiwer 4.0.0, rapidfuzz 3.14.6.
# Harm: Lyrics and transcripts come in lines. The word error rate of sung or spoken samples grows with the number of
#   lines, and a reward by it prefers the model that writes none.
# genalign: Has no error rate of speech.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jiwer==4.0.0 rapidfuzz==3.14.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import jiwer

print("jiwer", version("jiwer"))
heard = "we sang all night"
found = {}
for name, sung in {
    "the same": "we sang all night",
    "two spaces": "we sang  all night",
    "two lines": "we sang\nall night",
    "four lines": "we\nsang\nall\nnight",
    "an empty line between": "we sang\n\nall night",
    "a tab": "we sang\tall night",
}.items():
    found[name] = jiwer.wer(sung, heard)
    print(f"{name}: word error rate {found[name]:.2f}, {len(sung.split())} words by str.split")
right = all(found[name] == 0.0 for name in ("the same", "two spaces", "an empty line between"))
still = right and found["two lines"] > 0.6 and found["four lines"] == 4.0 and found["a tab"] > 0.6
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
