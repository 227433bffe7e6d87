#!/usr/bin/env bash
# peft's layers_to_transform does not see the layers of a diffusion transformer, and counts what lies within them.
#
# Expected: layers_to_transform=[0] adapts block 0 of transformer_blocks; [1] block 1.
# Seen: Without layers_pattern the number is looked for from the third part of a module's path on, so a list at the top of
#   the network is passed over. In SD3 [0] adapts the feed-forwards of all blocks (the 0 of "ff.net.0") and no
#   attention, and [1] is refused. In a UNet [0] adapts the first attention of every level, down, middle and up. With
#   layers_pattern="transformer_blocks" it is as expected in SD3. Nothing is said.
# Versions: peft 0.21.2, diffusers 0.42.1, torch 2.14.1.
# Harm: Adapting some blocks only is how a LoRA is kept small, or one of style made. Other weights than named are trained,
#   all through the network; the adapter saves and loads, and nobody looks.
# genalign: It chooses modules by their names and hands over no layer numbers.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 \
  accelerate==1.15.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import diffusers
import peft
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig

print("torch", torch.__version__, "diffusers", diffusers.__version__, "peft", peft.__version__)
small = {
    "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8, "caption_projection_dim": 16,
    "joint_attention_dim": 16, "pooled_projection_dim": 16,
}  # fmt: skip


def adapted(network, targets, layers, pattern=None):
    """Which modules have a LoRA, or None where peft refuses."""
    config = LoraConfig(r=2, target_modules=targets, layers_to_transform=layers, layers_pattern=pattern)
    try:
        network.add_adapter(config)
    except ValueError:
        return None
    return sorted({name.split(".lora_")[0] for name, _ in network.named_parameters() if ".lora_" in name})


targets = ["to_q", "net.0.proj"]
seen = {}
for layers, pattern in (([0], None), ([1], None), ([1], "transformer_blocks")):
    name = f"SD3, {layers}, pattern {pattern}"
    seen[name] = adapted(SD3Transformer2DModel(**small), targets, layers, pattern)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4, attention_head_dim=4,
    cross_attention_dim=16, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
)  # fmt: skip
seen["UNet, [0]"] = adapted(unet, ["attn1.to_q"], [0])
for name, modules in seen.items():
    print(f"{name}: {'refused' if modules is None else ', '.join(modules)}")
forwards = {f"transformer_blocks.{block}.{name}.net.0.proj" for block in range(3) for name in ("ff", "ff_context")}
forwards -= {"transformer_blocks.2.ff_context.net.0.proj"}  # the last block has none
first, second, named, levels = seen.values()
still = set(first) == forwards and second is None
block = ["attn.to_q", "ff.net.0.proj", "ff_context.net.0.proj"]
still = still and named == [f"transformer_blocks.1.{name}" for name in block]
still = still and len(levels) == 5 and all(".attentions.0.transformer_blocks.0." in name for name in levels)
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
