#!/usr/bin/env bash
# A model with a PiSSA or OLoRA adapter, the adapter disabled, is not the model that it was made from.
#
# Expected: Inside disable_adapter() the model computes what the base model does, as with any LoRA.
# Seen: These initialisations take the adapter's share out of the base weights, so that both together are the model
#   of the start. Without the adapter what is left is the remainder, off by as much as the share; EVA and the
#   orthogonal initialisation leave the base as it is.
# Versions: peft 0.21.2.
# Harm: The usual reference policy of KL penalties and of DPO, the adapter disabled, is a damaged model: log-ratios
#   start far from 0 and training pulls towards the damage. A second adapter of plain LoRA on that base starts from
#   it too, and an adapter saved as it is does not fit the original weights.
# genalign: Its adapters take peft's plain initialisation (policy/adapter.py), so the disabled one is the base.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import copy
import warnings

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
print("torch", torch.__version__, "transformers", transformers.__version__, "peft", peft.__version__)
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
)
base, ids = LlamaForCausalLM(config).eval(), torch.randint(0, 32, (4, 16))


def divergence(logits: torch.Tensor) -> float:
    """KL of the base from it, nats a token."""
    right = base(ids).logits.log_softmax(-1)
    return (right.exp() * (right - logits.log_softmax(-1))).sum(-1).mean().item()


off = {}
with torch.no_grad():
    for start in (True, "orthogonal", "pissa", "olora"):
        settings = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
        model = get_peft_model(copy.deepcopy(base), settings).eval()
        enabled = divergence(model(ids).logits)
        with model.disable_adapter():
            off[start] = divergence(model(ids).logits)
        print(f"init_lora_weights={start!r}: KL to the base {enabled:.4f} enabled, {off[start]:.4f} disabled")
        assert enabled < 1e-4, "at its start the adapter changes nothing"
still = max(off[True], off["orthogonal"]) < 1e-6 and min(off["pissa"], off["olora"]) > 0.01

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
