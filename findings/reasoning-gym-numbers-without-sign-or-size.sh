#!/usr/bin/env bash
# reasoning-gym takes -20 for 20, and a chance of 0 for one of 0.23.
#
# Expected: An answer that is another number than the right one is wrong, or earns a part by how near it is.
# Seen: gsm_symbolic looks for a number by a pattern that begins at the edge of a word, and no such edge lies before a
#   minus sign after a space or at the beginning: the sign is never part of it. coin_flip gives a part for digits that
#   agree from the left, divided by the shorter of both texts: "0" agrees with all of itself, and has 1 for every chance.
# Versions: reasoning-gym 0.1.25.
# Harm: In the first a debt is as right as a gain. The second rewards the one character "0" for every chance below 1, and
#   honest answers that are rounded to two places get 0.8: a policy learns to say 0.
# genalign: `use: answer` compares numbers by value, with their sign.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile reasoning-gym==0.1.25
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import reasoning_gym

print("reasoning-gym", version("reasoning-gym"))
signs = reasoning_gym.create_dataset("gsm_symbolic", size=10, seed=3)
negated = [signs.score_answer(f"The answer is -{task['answer']}.", task) for task in signs]
print("gsm_symbolic, right answers:", [task["answer"] for task in signs], "| negated, mean reward:", sum(negated) / 10)
flips = reasoning_gym.create_dataset("coin_flip", size=40, seed=3)
chances = [task for task in flips if 0.1 < float(task["answer"]) < 1]
zero = [flips.score_answer("0", task) for task in chances]
rounded = [flips.score_answer(f"{float(task['answer']):.2f}", task) for task in chances]
print(f"coin_flip, {len(chances)} chances between 0.1 and 1: mean reward of 0: {sum(zero) / len(zero)},"
      f" of the right answer to two places: {sum(rounded) / len(rounded):.3f}")
still = set(negated) == {1.0} and len(chances) > 10 and set(zero) == {1.0}

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
