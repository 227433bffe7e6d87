#!/usr/bin/env bash
# math-verify takes the imaginary unit for a letter: i^2 is not -1.
#
# Expected: (1+i)^2 is 2i, 1/i is -i, e^{i pi} is -1.
# Seen: All three are wrong. i is parsed as a symbol like x, so only what holds for any letter is right: the order of
#   terms (3+4i is 4i+3) and products written out, but (1+i)(1-i) is not 2.
# Versions: math-verify 0.9.0 with latex2sympy2-extended 1.11.0.
# Harm: Right answers in complex numbers get reward 0 unless they are in the same form as the stored one; e is read as
#   Euler's number everywhere, i nowhere as what it is.
# genalign: `answer` compares such answers as words.
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
PAIRS = [("$2i$", "$(1+i)^2$"), ("$-i$", r"$\frac{1}{i}$"), ("$-1$", r"$e^{i\pi}$"), ("$-1$", "$i^2$")]
PAIRS += [("$2$", "$(1+i)(1-i)$")]
for right, text in PAIRS:
    print(f"{text} where {right} is right: {verify(parse(right), parse(text))}")
letter = verify(parse("$1-x^2$"), parse("$(1+x)(1-x)$")), verify(parse("$3+4i$"), parse("$4i+3$"))
print("1-x^2 and (1+x)(1-x):", letter[0], "| 3+4i and 4i+3:", letter[1])
still = not any(verify(parse(right), parse(text)) for right, text in PAIRS) and all(letter)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
