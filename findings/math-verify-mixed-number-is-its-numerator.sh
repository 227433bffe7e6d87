#!/usr/bin/env bash
# math-verify reads the mixed number 2 5/8 as 5, or as 7/8, or right, by how it is written.
#
# Expected: 2\frac{5}{8} and 2 5/8 are 21/8, or the second cannot be read.
# Seen: $2\frac{5}{8}$ is 21/8. "It takes 2 5/8 cups." is 5, the numerator alone, and "$2 5/8$" is (2 + 5)/8. So "2 5/8"
#   is wrong where 2.625 is right, and is right where 5 is; "2 1/2" is right where 1 is.
# Versions: math-verify 0.9.0 with latex2sympy2-extended 1.11.0.
# Harm: Recipes, lengths in inches and school problems have mixed numbers. A model is rewarded or punished by the markup
#   around them, and nothing fails that would show it.
# genalign: `answer` reads several numbers there, so where the right one is a number it is not sure.
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
WRITTEN = [r"$2\frac{5}{8}$", "2 5/8", "It takes 2 5/8 cups.", "$2 5/8$", "10 11/16"]
read = [str(parse(text)[0]) for text in WRITTEN]
for text, value in zip(WRITTEN, read, strict=True):
    print(f"{text!r} is read as {value}")
right, other = verify(parse("2.625"), parse("2 5/8")), verify(parse("5"), parse("2 5/8"))
print(f"2 5/8 where 2.625 is right: {right}; where 5 is right: {other}")
still = read == ["21/8", "5", "5", "7/8", "11"] and not right and other

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
