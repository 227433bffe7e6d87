#!/usr/bin/env bash
# The flow-matching Euler scheduler of SD3's configuration spends its last step on the last hundredth of the noise.
#
# Expected: set_timesteps(n) puts n steps of equal length between 1 and 0 before the shift, as the n sigmas
#   1, 1 - 1/n, ... that other pipelines hand to the same scheduler: with shift 3 and three steps 1, 0.857, 0.6.
# Seen: 1, 0.751, 0.009. The lowest noise level is shifted when the scheduler is made, the steps are put between 1
#   and that, and then all are shifted, it a second time. The step from 0.009 to 0 changes nothing that one could
#   see, so three steps are two, and the same number of steps means two things for two pipelines. No warning.
# Versions: diffusers 0.42.1.
# Harm: A model of few steps draws with one step less than it was made for, and what was compared at "four steps"
#   was not; a sampler of few steps for training pays for a call that decides nothing.
# genalign: policy.sampler.sigmas names the levels; recipes of tiny-flow and its card do.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler

print("diffusers", diffusers.__version__)
seen = {}
for steps in (3, 4, 10, 28):
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    scheduler.set_timesteps(steps)
    by_number = scheduler.sigmas.tolist()
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    by_level = scheduler.sigmas.tolist()
    seen[steps] = by_number[-2], by_level[-2]
    print(f"{steps:>2} steps by number: ... {[round(s, 4) for s in by_number[-4:]]}")
    print(f"{steps:>2} steps by level:  ... {[round(s, 4) for s in by_level[-4:]]}")
still = all(last < 0.01 for last, _ in seen.values()) and abs(seen[3][1] - 0.6) < 1e-3

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
