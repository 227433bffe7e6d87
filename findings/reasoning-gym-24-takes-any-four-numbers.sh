#!/usr/bin/env bash
# reasoning-gym's game of 24 gives full marks to numbers that were not in the question.
#
# Expected: "Make 24 using 6, 2, 4, 8. You can only use each number once": an answer that uses other numbers is wrong.
# Seen: The scorer asks whether the answer is 24, holds four numbers, and each lies in the range that the task draws from
#   (1 to 10). Which numbers were given is not looked at: "6 + 6 + 6 + 6" has the reward 1 for every question.
# Versions: reasoning-gym 0.1.25.
# Harm: It is a suite of environments "with verifiable rewards". Training on this one converges to a single sentence that
#   answers all questions, at a perfect reward; a mix of tasks that holds it reports progress that is not there.
# genalign: Ships no such task. Its worlds' verifiers are tested against wrong facts of every kind.
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
tasks = reasoning_gym.create_dataset("puzzle24", size=20, seed=3)
print(tasks[0]["question"].splitlines()[0], "| given:", tasks[0]["metadata"]["numbers"])
same = [tasks.score_answer("6 + 6 + 6 + 6", task) for task in tasks if sorted(task["metadata"]["numbers"]) != [6, 6, 6, 6]]
print(f"6 + 6 + 6 + 6 for {len(same)} questions with other numbers: mean reward {sum(same) / len(same)}")
print("6 + 6 + 6 + 5:", tasks.score_answer("6 + 6 + 6 + 5", tasks[0]))
still = len(same) >= 15 and set(same) == {1.0} and tasks.score_answer("6 + 6 + 6 + 5", tasks[0]) < 0.1

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
