#!/usr/bin/env bash
# math-verify takes 1010 in base 2 for 1010 in any other base.
#
# Expected: $1010_2$ is 10, so $10$ is right and $1010_3$ is wrong; or, if bases are not read, only $1010_2$ is equal to
#   it.
# Seen: The index of a number is dropped. $1010_2$, $1010_3$, $1010_{16}$ and $1010$ are all the number 1010, and equal;
#   10 is wrong. Indices of letters count: x_1 is not x_2.
# Versions: math-verify 0.9.0 with latex2sympy2-extended 1.11.0.
# Harm: Conversions between bases are a common kind of question in sets of mathematics problems. Who copies the digits
#   of the question has the reward, and who answers in base ten where it was not asked for is wrong by chance.
# genalign: `answer` compares such an answer as words, where 1010_2 and 1010_3 differ.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile math-verify==0.9.0 latex2sympy2-extended==1.11.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from math_verify import parse, verify

print("math-verify", version("math-verify"))
right = parse("$1010_2$")
TRIED = ("$1010_2$", "$1010_3$", "$1010_{16}$", "$1010$", "$10$", "$1011_2$")
found = {text: verify(right, parse(text)) for text in TRIED}
print("right answer $1010_2$, read as", right[0])
for text, equal in found.items():
    print(f"{text}: {equal}")
letters = verify(parse("$x_1$"), parse("$x_2$"))
print("x_1 and x_2:", letters)
still = list(found.values()) == [True, True, True, True, False, False] and not letters

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
