#!/usr/bin/env bash
# A LoRA saved by save_lora_weights is loaded at another strength than it was trained at.
#
# Expected: save_lora_weights and load_lora_weights give back the adapter that was trained.
# Seen: peft's state dict holds matrices only, and save_lora_weights writes no metadata unless it is given; the
#   loader then takes alpha = rank. Trained with rank 4 and alpha 8, at strength 2, the adapter is loaded at 1.
#   No warning.
# Versions: diffusers 0.42.1, peft 0.21.2.
# Harm: The published adapter has half (or, with alpha 1, four times) the strength that was evaluated; rsLoRA is
#   off by the square root of the rank.
# genalign: It multiplies alpha / rank into B, so that alpha is the rank with and without metadata (policy/adapter.py).
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
from peft.utils import get_peft_model_state_dict

print("torch", torch.__version__, "diffusers", diffusers.__version__, "peft", peft.__version__)
diffusers.utils.logging.set_verbosity_error()


def pipeline() -> StableDiffusionPipeline:
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8, norm_num_groups=2, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return StableDiffusionPipeline(
        unet=unet, vae=None, text_encoder=None, tokenizer=None, scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )


def strength(unet: torch.nn.Module) -> float:
    layer = next(m for m in unet.modules() if isinstance(getattr(m, "scaling", None), dict))
    return next(iter(layer.scaling.values()))


trained = pipeline()
trained.unet.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False))
StableDiffusionPipeline.save_lora_weights("lora", unet_lora_layers=get_peft_model_state_dict(trained.unet))
loaded = pipeline()
loaded.load_lora_weights("lora")
print("strength where it was trained", strength(trained.unet), "and where it was loaded", strength(loaded.unet))
still = strength(trained.unet) == 2.0 and strength(loaded.unet) == 1.0

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
