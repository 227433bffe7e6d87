#!/usr/bin/env bash
# mir_eval gives beats of a short clip 0 against themselves.
#
# Expected: mir_eval.beat.evaluate of a list of beats against the same list is 1 in every measure.
# Seen: All of the first five seconds are cut away first, a convention of contests on whole songs. Of a clip of four
#   seconds nothing is left, and every measure is 0; a warning that the beats are empty is all there is to see. The single
#   measures (mir_eval.beat.f_measure) cut nothing.
# Versions: mir_eval 0.8.2, numpy 2.4.6.
# Harm: Generated music is judged in clips of two to ten seconds. A reward of rhythm by it is 0 for all of them, or
#   judges the second half alone.
# genalign: Its beat rule reads the whole clip.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile mir_eval==0.8.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import mir_eval
import numpy as np

print("mir_eval", version("mir_eval"))
whole = {}
for seconds in (4, 12):
    beats = np.arange(0.25, seconds, 0.5)
    scores = mir_eval.beat.evaluate(beats, beats)
    whole[seconds] = scores["F-measure"]
    print(f"{len(beats)} beats in {seconds} s against themselves: F {scores['F-measure']}, P-score {scores['P-score']};"
          f" f_measure alone: {mir_eval.beat.f_measure(beats, beats)}")
still = whole == {4: 0.0, 12: 1.0}
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
