#!/usr/bin/env bash
# A call with LoRA scale 0 leaves the adapter at scale 1 for all later calls.
#
# Expected: cross_attention_kwargs={"scale": s} (joint_attention_kwargs, attention_kwargs) holds for one call;
#   afterwards the weight given to set_adapters is back.
# Seen: At the end of the call the scale is divided out; for 0, where one cannot divide, it is set to 1. An
#   adapter set to 0.5 is at 1 after one call with scale 0.
# Versions: diffusers 0.42.1, peft 0.21.2.
# Harm: Scale 0 is the obvious way to get the base model as the reference of a KL or a DPO loss. After the first
#   reference pass the policy runs at another strength than chosen, silently.
# genalign: It switches adapters by its own flag; a scale among the fixed call arguments is refused (policy/call.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import peft
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

print("torch", torch.__version__, "diffusers", diffusers.__version__, "peft", peft.__version__)
torch.manual_seed(0)
unet = UNet2DConditionModel(
    block_out_channels=(4, 8), layers_per_block=1, sample_size=8, norm_num_groups=2, cross_attention_dim=16,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
)
unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), adapter_name="a")
layer = next(m for m in unet.modules() if isinstance(getattr(m, "scaling", None), dict))
found = {}
for scale in (1.0, 0.5, 0.0):
    unet.set_adapters(["a"], [0.5])
    before = layer.scaling["a"]
    unet(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 4, 16), cross_attention_kwargs={"scale": scale})
    found[scale] = layer.scaling["a"] / before
    print(f"call with scale {scale}: strength of the adapter before {before}, after {layer.scaling['a']}")
still = found == {1.0: 1.0, 0.5: 1.0, 0.0: 2.0}

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
