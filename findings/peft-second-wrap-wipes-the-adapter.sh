#!/usr/bin/env bash
# get_peft_model on a network that holds an adapter starts that adapter anew.
#
# Expected: A second get_peft_model on the same network raises, or adds an adapter beside the first, which keeps
#   its weights.
# Seen: Both are named default, and the second call initialises the first one's tensors again: the model of the
#   first call has lost its training too. There is only a warning.
# Versions: peft 0.21.2.
# Harm: A notebook cell run twice, a reward and a policy that share a backbone, or a resume that wraps before
#   loading, silently throws a trained adapter away and goes on from zero.
# genalign: It injects its adapter once and does not call get_peft_model. A model that holds a LoRA already is
#   refused (policy/adapter.py): the new adapter would switch that off silently.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import warnings

import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

warnings.simplefilter("ignore")
print("torch", torch.__version__, "peft", peft.__version__)
torch.manual_seed(0)
base, x = nn.Sequential(nn.Linear(8, 8)), torch.ones(1, 8)
first = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
nn.init.ones_(first.base_model.model[0].lora_B["default"].weight)  # "trained"
trained = first(x)
with first.disable_adapter():
    plain = first(x)
get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
after = first(x)
print(f"effect of the adapter before the second call {(trained - plain).abs().max().item():.3f}, "
      f"after it {(after - plain).abs().max().item():.3f}")
still = not torch.equal(trained, plain) and torch.equal(after, plain)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
