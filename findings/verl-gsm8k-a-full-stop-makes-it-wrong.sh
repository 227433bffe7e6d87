#!/usr/bin/env bash
# verl's reward for GSM8K takes a right number for wrong if a full stop or a comma follows it.
#
# Expected: "The answer is 42." and "#### 42." have the reward 1 where 42 is right, and "#### $42" too, as dollar signs are
#   removed from what was found.
# Seen: The pattern of a number takes every dot and comma, so the answer is "42.", and is compared as text: reward 0, by
#   the strict method and by the flexible one, which is meant for answers in a sentence. After "#### " the pattern expects
#   a digit, so an answer in dollars is not found at all by the strict method, before its sign could be removed. "42" at
#   the very end of a line is right; "42.0" is wrong.
# Versions: verl 0.9.1.
# Harm: It is the reward of verl's first tutorials. A model that solves the problems and writes English sentences is
#   taught not to; many answers there are dollars.
# genalign: `use: answer` reads a number by value: a full stop, a comma of thousands and a dollar sign do not matter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --no-deps verl==0.9.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
# The package imports torch and ray, of which nothing is asked here: the one file is loaded by itself.
import sysconfig
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location

print("verl", version("verl"))
spec = spec_from_file_location("gsm8k", sysconfig.get_paths()["purelib"] + "/verl/utils/reward_score/gsm8k.py")
gsm8k = module_from_spec(spec)
spec.loader.exec_module(gsm8k)

TRIED = ["#### 42", "#### 42.", "#### $42", "#### 42.0", "So it is 42", "The answer is 42.", "It is 42, as we saw."]
found = {}
for method in ("strict", "flexible"):
    found[method] = [gsm8k.compute_score(text, "42", method) for text in TRIED]
    print(method, dict(zip(TRIED, found[method], strict=True)))
still = found == {"strict": [1, 0, 0, 0, 0, 0, 0], "flexible": [1, 0, 1, 0, 1, 0, 0]}

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
