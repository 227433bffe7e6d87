#!/usr/bin/env bash
# Four EMA classes at one decay give four averages; most of them copy the weights at first.
#
# Expected: Decay 0.999 means average <- 0.999 average + 0.001 weights from the first update on, at least where
#   warm-up is off (diffusers: use_ema_warmup=False).
# Seen: A weight that rises from 0 to 1 in 100 updates: by the formula 0.049; torch's AveragedModel 0.058 (it
#   copies at the first update); torch-ema 0.90 and diffusers 0.90 (a hidden warm-up, (1+n)/(10+n), with
#   use_ema_warmup=False too); ema-pytorch 0.91 (copies every tenth update).
# Versions: diffusers 0.42.1, torch 2.13.0, torch-ema 0.3, ema-pytorch 0.8.3.
# Harm: Alignment runs are short. Where the average is the sampler, the reference or the old policy (NFT, online
#   DPO, trust regions), the average is nearly the policy itself in most packages for the first hundreds of
#   steps, so the method runs without its anchor; results of papers are not comparable.
# genalign: The policy's average follows the formula from the first update on, without warm-up.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 \
  torch-ema==0.3 ema-pytorch==0.8.3
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import ema_pytorch
import torch
import torch_ema
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

print("torch", torch.__version__, "diffusers", diffusers.__version__)
net = nn.Linear(1, 1, bias=False)


def after_ramp(make, update, read) -> float:
    net.weight.data.zero_()
    average = make()
    for step in range(1, 101):
        net.weight.data.fill_(step / 100)
        update(average)
    return round(read(average).item(), 4)


formula = 0.0
for step in range(1, 101):
    formula = 0.999 * formula + 0.001 * step / 100
found = {
    "torch AveragedModel": after_ramp(
        lambda: AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999)),
        lambda a: a.update_parameters(net), lambda a: a.module.weight),
    "diffusers EMAModel": after_ramp(
        lambda: EMAModel(net.parameters(), decay=0.999, use_ema_warmup=False),
        lambda a: a.step(net.parameters()), lambda a: a.shadow_params[0]),
    "torch-ema": after_ramp(
        lambda: torch_ema.ExponentialMovingAverage(net.parameters(), decay=0.999),
        lambda a: a.update(), lambda a: a.shadow_params[0]),
    "ema-pytorch": after_ramp(
        lambda: ema_pytorch.EMA(net, beta=0.999), lambda a: a.update(), lambda a: a.ema_model.weight),
}
print(f"formula: {formula:.4f}")
for name, value in found.items():
    print(f"{name}: {value}")
still = 0.05 < found["torch AveragedModel"] < 0.07 and min(list(found.values())[1:]) > 0.85

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
