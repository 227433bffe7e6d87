#!/usr/bin/env bash
# load_lora_weights loads nothing from a file that save_lora_adapter has written, and does not fail.
#
# Expected: A pipeline loads the adapter that its own transformer has saved, or raises where it finds no layer of it.
# Seen: save_lora_adapter writes keys without the name of the component, load_lora_weights takes only those that begin
#   with it: no layer is adapted. A log line calls that "safe to ignore". Another half: a file of save_lora_weights for a
#   model of more blocks is loaded into one of fewer, and the rest is dropped with a log line.
# Versions: diffusers 0.42.1, peft 0.21.2, WanPipeline (the mixin of all pipelines).
# Harm: A trained LoRA is judged by pictures of the base model: "training did nothing".
# genalign: Writes its adapters with the component's name, and tests that a plain pipeline draws the same with them
#   (tests/families).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 peft==0.21.2 accelerate==1.15.0 ftfy==6.3.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import peft
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict

print("torch", torch.__version__, "diffusers", diffusers.__version__, "peft", peft.__version__)


def transformer(blocks: int) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, ffn_dim=32, num_layers=blocks, rope_max_seq_len=32
    )


def trained(blocks: int) -> WanTransformer3DModel:
    torch.manual_seed(0)
    model = transformer(blocks)
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False))
    return model


def layers(model: WanTransformer3DModel) -> int:
    return sum("lora_A" in name for name, _ in model.named_parameters())


def loaded(folder: str, blocks: int) -> int:
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer(blocks),
    )
    pipe.load_lora_weights(folder)
    return layers(pipe.transformer)


one, two = trained(1), trained(2)
one.save_lora_adapter("adapter")
WanPipeline.save_lora_weights("weights", transformer_lora_layers=get_peft_model_state_dict(one))
WanPipeline.save_lora_weights("larger", transformer_lora_layers=get_peft_model_state_dict(two))
found = {name: loaded(name, 1) for name in ("adapter", "weights", "larger")}
print(f"adapted layers: {layers(one)} of one block, {layers(two)} of two")
print(f"loaded into one block from save_lora_adapter: {found['adapter']}; from save_lora_weights: {found['weights']}; "
      f"from that of two blocks: {found['larger']}")
still = found == {"adapter": 0, "weights": layers(one), "larger": layers(one)} and layers(two) == 2 * layers(one)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
