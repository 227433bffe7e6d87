#!/usr/bin/env bash
# math-verify reads 1.5e-3 as 1.5 times Euler's number minus 3; with a capital E it is the number that was written.
#
# Expected: \boxed{1.5e-3} is 0.0015 and \boxed{2.5e3} is 2500, as \boxed{2.5E3} is.
# Seen: A small e is the constant: 1.5e-3 is 1.5 * 2.718 - 3 = 1.077, and 2.5e3 is 2.5 * 2.718 * 3 = 20.4. Outside of
#   mathematics (no box, no dollars) the parser stops at the e: 1.5e-3 is 1.5, and is judged equal to 1.5.
# Versions: math-verify 0.9.0, latex2sympy2-extended 1.11.0.
# Harm: A model that answers as every programming language prints a float is told that it is wrong; unboxed, one that
#   is wrong by factors of ten is told that it is right.
# genalign: `use: answer` reads 1.5e-3 and 1.5 x 10^-3 as they are meant.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile math-verify==0.9.0 latex2sympy2-extended==1.11.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from math_verify import parse, verify

print("math-verify", version("math-verify"), "latex2sympy2-extended", version("latex2sympy2-extended"))
EXPECTED = [
    ("0.0015", r"\boxed{1.5e-3}", False),
    ("1.0774", r"\boxed{1.5e-3}", False),
    ("2500", r"\boxed{2.5e3}", False),
    ("2500", r"\boxed{2.5E3}", True),
    ("0.0015", "1.5e-3", False),
    ("1.5", "1.5e-3", True),
]
still = True
for gold, answer, seen in EXPECTED:
    found = verify(parse(gold), parse(answer))
    print(f"{answer} for {gold}: {found}, read as {parse(answer)}")
    still = still and found is seen
read = float(parse(r"\boxed{1.5e-3}")[0].evalf())
print(f"1.5e-3 in a box is {read:.4f}")
still = still and abs(read - (1.5 * 2.718281828 - 3)) < 1e-6
raise SystemExit(0 if still else "this has changed: a small e is read otherwise")
PY
