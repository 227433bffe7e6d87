#!/usr/bin/env bash
# After fuse_qkv_projections the LoRA on to_q, to_k and to_v has no effect and no gradient.
#
# Expected: Fusing three projections into one is an optimisation: outputs and what is trained stay the same.
# Seen: The fused layer is built from the base weights alone. In Flux, SD3, CogVideoX and AuraFlow the output is
#   bit-equal to the base model's, no LoRA tensor gets a gradient, the adapter is still listed as active, and
#   new base weights that require a gradient appear.
# Versions: diffusers 0.42.1, peft 0.21.2.
# Harm: A pipeline that was sped up before training trains new copies of base weights, which no LoRA file holds,
#   and the saved adapter is the untrained one; fused after training, the adapter is off.
# genalign: A policy refuses attention with fused projections and names the cure (policy/adapter.py).
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
from diffusers import FluxTransformer2DModel
from peft import LoraConfig

print("torch", torch.__version__, "diffusers", diffusers.__version__, "peft", peft.__version__)
torch.manual_seed(0)
net = FluxTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
).requires_grad_(False)
inputs = {
    "hidden_states": torch.randn(1, 4, 4), "encoder_hidden_states": torch.randn(1, 3, 32),
    "pooled_projections": torch.randn(1, 32), "timestep": torch.tensor([0.5]),
    "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3),
}
base = net(**inputs).sample
net.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
adapted = net(**inputs).sample
net.fuse_qkv_projections()
fused = net(**inputs).sample
trained = [name for name, p in net.named_parameters() if p.requires_grad and "lora" not in name]
print(f"effect of the LoRA: {(adapted - base).abs().max().item():.4f}, "
      f"after fusing {(fused - base).abs().max().item():.4f}")
print(f"active adapters {net.active_adapters()}, new base weights that would be trained: {len(trained)}")
still = not torch.equal(adapted, base) and torch.allclose(fused, base, atol=1e-5) and len(trained) > 0

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
