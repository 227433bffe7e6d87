#!/usr/bin/env bash
# On a plateau below zero ReduceLROnPlateau never reduces the learning rate.
#
# Expected: A metric that stays at one value is no progress: after `patience` steps the rate falls. It does at 10.
# Seen: At -10 it never does. "Better" in the relative mode is a < best (1 - threshold) for a minimum, which is -9.999
#   where the best is -10: to stay the same is an improvement, and so is to become a little worse. So it is for a
#   maximum: a reward of -10 that falls by 0.0009 a step, to -14.5, is always "better" than the best.
# Versions: torch 2.13.0.
# Harm: Rewards, log-likelihoods and losses of densities are negative as often as not. The rate is never reduced, and
#   the best value that the schedule remembers is not the best.
# genalign: Its schedules are functions of the step alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

print("torch", torch.__version__)


def rate(mode: str, metrics: list[float]) -> float:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = ReduceLROnPlateau(optimizer, mode=mode, patience=10)
    for metric in metrics:
        schedule.step(metric)
    return optimizer.param_groups[0]["lr"]


found = {}
for mode in ("min", "max"):
    for value in (10.0, -10.0):
        found[mode, value] = rate(mode, [value] * 1000)
        print(f"mode {mode}: after 1000 steps at {value} the rate is {found[mode, value]:.2g}")
falling = rate("max", [-10 - 0.0009 * step for step in range(5000)])
print(f"mode max: after 5000 steps from -10 down to -14.5 the rate is {falling:.2g}")
still = falling == 1 and all(lr < 1e-6 if value > 0 else lr == 1 for (_, value), lr in found.items())

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
