#!/usr/bin/env bash
# verl's reward of DAPO takes x>=5 for x<=5, 1,2 for 12, and 5 cents for 5 dollars.
#
# Expected: An answer that says something else than the right one has no reward.
# Seen: What stands before the last "=" is cut off, so x>=5 and x<=5 are both 5, and x!=5 too. Commas are removed from
#   digits, also from lists: 1,2 is 12, and 10,20 is 1020; in 1,000.5 they are kept, so it is not 1000.5. Units are
#   removed: 5 cents are 5 dollars, 5 feet are 5 meters. "x>5" and "x<5" do differ, and so does \geq from \leq. "42." is
#   not 42.
# Versions: verl 0.9.1.
# Harm: It is the reward of the DAPO recipe and of the runs that follow it, by rules that were made to compare printed
#   answers. Solutions of inequalities and lists of roots are right by their digits alone.
# genalign: `answer` keeps signs of comparison and lists apart, and reads numbers by value.
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
spec = spec_from_file_location("dapo", sysconfig.get_paths()["purelib"] + "/verl/utils/reward_score/math_dapo.py")
dapo = module_from_spec(spec)
spec.loader.exec_module(dapo)

SAME = [("x>=5", "x<=5"), ("x=5", "x!=5"), ("1,2", "12"), ("10,20", "1020")]
SAME += [("5 cents", "5 dollars"), ("5 feet", "5 meters")]
OTHER = [("x>5", "x<5"), (r"x\geq5", r"x\leq5"), ("1,000.5", "1000.5"), ("42", "42.")]
found = {pair: dapo.compute_score(f"Answer: {pair[1]}", pair[0])["score"] for pair in SAME + OTHER}
for (right, answer), score in found.items():
    print(f"right {right}, answered {answer}: {score}")
still = all(found[pair] == 1 for pair in SAME) and all(found[pair] == -1 for pair in OTHER)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
