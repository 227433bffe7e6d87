#!/usr/bin/env bash
# After a pipeline's call, scale_noise and add_noise ignore the timestep they are given.
#
# Expected: scheduler.scale_noise(clean, t, noise), or add_noise, noises to the level of t.
# Seen: Once a begin index is set (pipelines call set_begin_index(0)), the level is that of the begin index
#   before the first step and of the current step index afterwards, whatever t says. After a finished call the
#   flow scheduler returns the clean sample unnoised. DDIM, DDPM, LCM and PNDM take t.
# Versions: diffusers 0.42.1: FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler,
#   DPMSolverMultistepScheduler and others.
# Harm: Sample with a pipeline, then noise the samples with the same scheduler for Diffusion-DPO, NFT, KTO or a
#   value model: every loss is computed at one level (or without noise) while the model is told another. The
#   loss falls nicely.
# genalign: It keeps its own table of noise levels and does not call these functions on a pipeline's scheduler.
#   A row in docs for those who write methods.
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
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers import FlowMatchEulerDiscreteScheduler

print("torch", torch.__version__, "diffusers", diffusers.__version__)
clean, noise = torch.zeros(1, 4), torch.ones(1, 4)  # so the noised sample shows the noise level itself


def level(scheduler, t) -> float:
    noised = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
    arguments = (clean, t, noise) if hasattr(scheduler, "scale_noise") else (clean, noise, t)
    return noised(*arguments).mean().item()


found = {}
for kind in (FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, DDIMScheduler):
    scheduler = kind()
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[7:8]
    levels = [level(scheduler, t)]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # as a pipeline does
    levels.append(level(scheduler, t))
    x = noise
    for step in scheduler.timesteps[:3] if kind is not FlowMatchEulerDiscreteScheduler else scheduler.timesteps:
        x = scheduler.step(torch.zeros_like(x), step, scheduler.scale_model_input(x, step)
                           if hasattr(scheduler, "scale_model_input") else x)[0]
    levels.append(level(scheduler, t))
    found[kind.__name__] = levels
    print(f"{kind.__name__}, t {t.item():.1f}: fresh {levels[0]:.3f}, begun {levels[1]:.3f}, stepped {levels[2]:.3f}")
fresh, begun, done = found["FlowMatchEulerDiscreteScheduler"]
still = (
    fresh != begun == 1.0 and done == 0.0
    and len(set(found["EulerDiscreteScheduler"])) == 3 and len(set(found["DPMSolverMultistepScheduler"])) == 3
    and len(set(found["DDIMScheduler"])) == 1
)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
