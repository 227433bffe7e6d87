#!/usr/bin/env bash
# peft's linear combination of LoRA adapters is not linear: the mean of an adapter and its copy is twice the adapter.
#
# Expected: add_weighted_adapter(["a", "b"], [0.5, 0.5], combination_type="linear") changes the weights by the mean of
#   what a and b change, as "cat" and "svd" do; of two equal adapters that is the adapter.
# Seen: The matrices A and B are each summed with square roots of the weights, and their product has the cross terms
#   of a's B with b's A: of equal adapters it is twice either, of two independent ones as far from their mean as the
#   mean is long.
# Versions: peft 0.21.2.
# Harm: Averages of policies ("rewarded soups", a sweep between two rewards, means over seeds) are of another strength
#   and direction than asked for, so the front that they draw is not that of interpolated weights.
# genalign: It does not combine adapters by peft.
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
torch.manual_seed(0)
config = LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights=False)
model = get_peft_model(nn.Sequential(nn.Linear(64, 64, bias=False)), config, adapter_name="first")
for name in ("second", "copy"):
    model.add_adapter(name, config)
layer = model.base_model.model[0]
for matrices in (layer.lora_A, layer.lora_B):
    matrices["copy"].weight.data.copy_(matrices["first"].weight)


def change(name: str) -> torch.Tensor:
    return layer.get_delta_weight(name).detach()


def error(other: str, kind: str, **options) -> float:
    model.add_weighted_adapter(["first", other], [0.5, 0.5], f"{other}-{kind}", combination_type=kind, **options)
    mean = (change("first") + change(other)) / 2
    return ((change(f"{other}-{kind}") - mean).norm() / mean.norm()).item()


found = {(other, kind): error(other, kind) for other in ("copy", "second") for kind in ("linear", "cat")}
for (other, kind), value in found.items():
    print(f"mean of first and {other} by {kind}: off by {value:.3f} of its length")
ratio = (change("copy-linear").norm() / change("first").norm()).item()
print(f"mean of an adapter and its copy by linear: {ratio:.3f} times the adapter")
still = abs(ratio - 2) < 1e-3 and found["second", "linear"] > 0.5
still = still and max(found["copy", "cat"], found["second", "cat"]) < 1e-5

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
