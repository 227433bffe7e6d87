#!/usr/bin/env bash
# scheduler.step with the same arguments returns another sample when called again.
#
# Expected: step(model_output, timestep, sample) is a function of its arguments.
# Seen: The timestep is looked up at the first call only; each later call takes the next noise level, whichever
#   timestep is given. DDIM and DDPM are functions.
# Versions: diffusers 0.42.1: FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler.
# Harm: Calling step once to sample and once more to get the mean for a log-probability (a replay, a reference,
#   two branches of a tree search, a retry after an error) computes with another step size, so old and new log-
#   probabilities belong to different steps.
# genalign: Transitions are computed from its own table by index; the scheduler is stepped once, while sampling.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

print("torch", torch.__version__, "diffusers", diffusers.__version__)
diffusers.utils.logging.set_verbosity_error()
generator = torch.Generator().manual_seed(0)
output, sample = torch.randn(1, 4, generator=generator), torch.randn(1, 4, generator=generator)
found = {}
for kind in (FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler, DDIMScheduler):
    scheduler = kind(shift=3.0) if kind is FlowMatchEulerDiscreteScheduler else kind()
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[2]
    first, second = (scheduler.step(output, t, sample)[0] for _ in range(2))
    found[kind.__name__] = (first - second).abs().max().item()
    print(f"{kind.__name__}: two calls at timestep {float(t):.1f} differ by {found[kind.__name__]:.4f}")
*stateful, ddim = found.values()
still = min(stateful) > 1e-3 and ddim == 0

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
