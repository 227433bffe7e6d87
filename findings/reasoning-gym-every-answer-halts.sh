#!/usr/bin/env bash
# reasoning-gym takes every text for the right answer to whether a game of life halts.
#
# Expected: The question is to be answered by True or False, and the reward is 1 for the right one and 0 for the other.
# Seen: Answer and solution are strings, and both go through Python's bool, by which every string that is not empty is
#   true, "False" too: any answer, right, wrong or off the subject, has the reward 1.
# Versions: reasoning-gym 0.1.25.
# Harm: A group of samples of one prompt always has equal rewards, so this task teaches nothing, while its mean reward of
#   1.0 lifts every average over tasks, also that of a model which was never trained.
# genalign: Ships no such task; a run warns after five steps without a signal (training/signal.py).
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
tasks = reasoning_gym.create_dataset("game_of_life_halting", size=12, seed=3)
right = [task["answer"] for task in tasks]
means = {}
for answer in ("True", "False", "I do not know"):
    means[answer] = sum(tasks.score_answer(answer, task) for task in tasks) / 12
print("right answers:", {answer: right.count(answer) for answer in set(right)})
print("mean reward of one and the same answer:", means)
still = len(set(right)) == 2 and set(means.values()) == {1.0}

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
