#!/usr/bin/env bash
# unfuse_lora does not give back the strength that fuse_lora's lora_scale took.
#
# Expected: fuse_lora(lora_scale=0.5) followed by unfuse_lora() leaves the pipeline as it was.
# Seen: The factor stays in the adapter's scaling: an adapter at 1 is at 0.5 after one pair of calls and at 0.25
#   after the second.
# Versions: diffusers 0.42.1, peft 0.21.2.
# Harm: Fusing to speed up an evaluation and unfusing to train on weakens the policy at each evaluation, and the
#   reference of later updates with it.
# genalign: It does not fuse. Evaluation runs the adapter as it is.
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
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig

print("torch", torch.__version__, "diffusers", diffusers.__version__, "peft", peft.__version__)
diffusers.utils.logging.set_verbosity_error()
unet = UNet2DConditionModel(
    block_out_channels=(4, 8), layers_per_block=1, sample_size=8, norm_num_groups=2, cross_attention_dim=16,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=2,
)
pipe = StableDiffusionPipeline(
    unet=unet, vae=None, text_encoder=None, tokenizer=None, scheduler=DDIMScheduler(), safety_checker=None,
    feature_extractor=None, requires_safety_checker=False,
)
unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False), adapter_name="a")
layer = next(m for m in unet.modules() if isinstance(getattr(m, "scaling", None), dict))
scales = [layer.scaling["a"]]
for _ in range(2):
    pipe.fuse_lora(components=["unet"], lora_scale=0.5)
    pipe.unfuse_lora(components=["unet"])
    scales.append(layer.scaling["a"])
print("strength of the adapter at first, after one and after two pairs of calls:", scales)
still = scales == [1.0, 0.5, 0.25]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
