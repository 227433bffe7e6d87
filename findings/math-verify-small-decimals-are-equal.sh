#!/usr/bin/env bash
# math-verify takes Planck's constant for the charge of an electron: decimals below 5e-7 are all equal, and equal to 0.
#
# Expected: Two numbers are equal within a relative precision, or as the exact numbers that were written down:
#   6.6 x 10^-34 is neither 1.6 x 10^-19 nor 0.
# Seen: A number with a decimal point is compared after both were rounded to six places behind it, whatever its size:
#   both are 0. Without a decimal point (3 x 10^-9 and 7 x 10^-9) they are compared exactly and differ.
# Versions: math-verify 0.9.0.
# Harm: It is the usual verifier of answers in reinforcement learning of language models (TRL's accuracy_reward,
#   lighteval). In physics, chemistry and numerical questions with a small answer every small answer is rewarded, 0 too.
# genalign: `use: answer` compares to a millionth of the right number's own size; docs/rewards.md says so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile math-verify==0.9.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from math_verify import parse, verify

print("math-verify", version("math-verify"))
EQUAL = [
    (r"\boxed{6.6 \times 10^{-34}}", r"\boxed{1.6 \times 10^{-19}}"),
    (r"\boxed{6.6 \times 10^{-34}}", r"\boxed{0.0}"),
    (r"\boxed{0.00000000045}", r"\boxed{0.00000000012}"),
]
UNEQUAL = [(r"\boxed{3 \times 10^{-9}}", r"\boxed{7 \times 10^{-9}}"), (r"\boxed{0.45}", r"\boxed{0.12}")]


def same(gold: str, answer: str) -> bool:
    found = verify(parse(gold), parse(answer))
    print(f"{gold} is {answer}: {found}")
    return found


still = [same(*pair) for pair in EQUAL] == [True] * 3 and [same(*pair) for pair in UNEQUAL] == [False] * 2
raise SystemExit(0 if still else "this has changed: small decimals are told apart")
PY
