#!/usr/bin/env bash
# Merging a small LoRA into bfloat16 weights loses most of it.
#
# Expected: merge_and_unload gives the adapted model up to bfloat16 rounding of the outputs.
# Seen: The sum is rounded to the spacing of the base weight. Base weights of standard deviation 0.02 and a
#   delta of 1e-5: 89% of the elements do not change at all and what arrives is 88% away from the delta; at 1e-4
#   it is 31%, at 1e-3 3%. No warning.
# Versions: peft 0.21.2, torch 2.13.0 and 2.14.1.
# Harm: Deltas of reward fine-tuning are often this small (few steps, low learning rate, KL). The unmerged
#   adapter has the reward that was measured, the published merged model has lost part of it.
# genalign: It exports adapters; policy.merged measures what rounding keeps of one, and warns.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

print("torch", torch.__version__, "peft", peft.__version__)
errors = {}
for size in (1e-5, 1e-4, 1e-3):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(512, 512, bias=False))
    nn.init.normal_(base[0].weight, std=0.02)
    base = base.to(torch.bfloat16)
    before = base[0].weight.detach().float().clone()
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=4, target_modules=["0"], init_lora_weights=False))
    layer = model.base_model.model[0]
    nn.init.normal_(layer.lora_A["default"].weight, std=1.0)
    nn.init.normal_(layer.lora_B["default"].weight, std=size / 2)
    delta = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().float()
    arrived = model.merge_and_unload()[0].weight.detach().float() - before
    errors[size] = ((arrived - delta).norm() / delta.norm()).item()
    same = (arrived == 0).float().mean().item()
    print(f"delta {size:g}: unchanged elements {same:.0%}, relative error of the merged delta {errors[size]:.0%}")
still = errors[1e-5] > 0.7 and errors[1e-4] > 0.2 and errors[1e-3] < 0.1

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
