#!/usr/bin/env bash
# Changing schedulers with from_config loses the flow shift, and the kind of model.
#
# Expected: Other.from_config(pipe.scheduler.config), the documented way of changing a sampler, keeps the noise
#   schedule of the model.
# Seen: The shift is called shift in one family and flow_shift in the other: from UniPC with flow_shift 5 the
#   flow-matching Euler scheduler gets shift 1; in the other direction UniPC falls back to diffusion noise
#   levels (157 at the start) and to predicting noise. No warning.
# Versions: diffusers 0.42.1.
# Harm: A Wan or HunyuanVideo pipeline (UniPC) moved to an Euler scheduler for training samples at other noise
#   levels than the model was made for, and the tuned adapter is then used at the right ones; in the other
#   direction pictures are noise.
# genalign: policy/schedule.py reads flow_shift and shift alike when it builds its one-step scheduler.
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
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

print("torch", torch.__version__, "diffusers", diffusers.__version__)
diffusers.utils.logging.set_verbosity_error()
unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
euler = FlowMatchEulerDiscreteScheduler(shift=5.0)
from_unipc = FlowMatchEulerDiscreteScheduler.from_config(unipc.config)
from_euler = UniPCMultistepScheduler.from_config(euler.config)
named = {"UniPC": unipc, "Euler from it": from_unipc, "Euler": euler, "UniPC from it": from_euler}
for name, scheduler in named.items():
    scheduler.set_timesteps(4)
    print(f"{name:>13}: sigmas {[round(s, 3) for s in scheduler.sigmas.tolist()]}")
print("Euler from UniPC: shift", from_unipc.config.shift)
print("UniPC from Euler: prediction", from_euler.config.prediction_type)
still = (
    from_unipc.config.shift == 1.0 and from_euler.config.flow_shift == 1.0
    and from_euler.config.prediction_type == "epsilon" and from_euler.sigmas[0] > 100
)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
