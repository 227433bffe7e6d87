#!/usr/bin/env bash
# Two diffusers samplers take their noise from elsewhere than the generator: equal generators give other samples.
#
# Expected: A call with generator=torch.Generator().manual_seed(5) gives the same sample again, whatever the global
#   generator's state; and a generator that has moved on gives other noise.
# Seen: DPMSolverSDEScheduler.step has no argument for a generator, so the pipeline leaves it out, and the seed of its noise
#   is drawn from torch's global generator. CosineDPMSolverMultistepScheduler reads the generator's first seed and not its
#   state, so a second call with the same generator repeats the first call's noise. Euler's ancestral sampler does both
#   right.
# Versions: diffusers 0.42.1, torchsde 0.2.6, torch 2.13.0.
# Harm: "DPM++ SDE Karras" of other tools is this class. A picture by seed is not drawn again, and in a comparison of two
#   models at equal seeds each has other noise, so that their differences are partly chance.
# genalign: Draws noise by itself, each sample from its own seed; the step of such a sampler is replaced (policy/schedule.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 diffusers==0.42.1 torchsde==0.2.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import inspect

import diffusers
import torch
from diffusers import CosineDPMSolverMultistepScheduler, DPMSolverSDEScheduler, EulerAncestralDiscreteScheduler

print("torch", torch.__version__, "diffusers", diffusers.__version__)


def sample(kind, generator, global_seed):
    torch.manual_seed(global_seed)
    scheduler = kind()
    scheduler.set_timesteps(6)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    takes = "generator" in inspect.signature(scheduler.step).parameters  # as pipelines ask
    for t in scheduler.timesteps:
        output = 0.1 * scheduler.scale_model_input(x, t)
        x = scheduler.step(output, t, x, **({"generator": generator} if takes else {})).prev_sample
    return x


def seeded():
    return torch.Generator().manual_seed(5)


found = {}
for kind in (EulerAncestralDiscreteScheduler, DPMSolverSDEScheduler, CosineDPMSolverMultistepScheduler):
    again = torch.equal(sample(kind, seeded(), 1), sample(kind, seeded(), 2))
    moving = seeded()
    other = not torch.equal(sample(kind, moving, 1), sample(kind, moving, 2))
    found[kind.__name__] = again, other
    print(f"{kind.__name__}: equal generators give equal samples: {again}; a generator that moved on gives another: {other}")
still = list(found.values()) == [(True, True), (False, True), (True, False)]
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
