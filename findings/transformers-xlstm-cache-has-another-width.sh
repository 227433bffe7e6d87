#!/usr/bin/env bash
# Most widths of an xLSTM can be trained and never sampled: its cache has another width than its layers.
#
# Expected: A configuration that is accepted, and whose forward and backward passes work, generates.
# Seen: The layers take heads of hidden_size * qk_dim_factor / num_heads, the cache rounds that width up by a multiple.
#   With hidden_size 64, 192 or 320 and two heads the forward pass without a cache works and with one (the default in eval
#   mode), and so generate, ends in "ValueError: matC_old has wrong shape"; with 128 or 256 both work.
# Versions: transformers 5.24.0, torch 2.13.0.
# Harm: A small model, or one of a width of one's own, trains for days on given texts and fails at its first sample;
#   online methods (GRPO, PPO) cannot begin.
# genalign: Cannot mend it; a run ends at its first rollout, before anything is learnt. Take a width that generates.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
import transformers
from transformers import xLSTMConfig, xLSTMForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__)
tokens = torch.arange(8)[None]
seen = {}
for width in (64, 192, 320, 128, 256):
    config = xLSTMConfig(vocab_size=32, hidden_size=width, num_heads=2, num_hidden_layers=2, num_blocks=2)
    model = xLSTMForCausalLM(config).eval()
    loss = model(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    try:
        seen[width] = str(tuple(model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0).shape))
    except ValueError as error:
        seen[width] = f"ValueError: {error}"
    print(f"hidden_size {width}: loss {loss.item():.2f}, generate: {seen[width][:90]}")
fails = [width for width, said in seen.items() if "matC_old has wrong shape" in said]
raise SystemExit(0 if fails == [64, 192, 320] else "this has changed: these widths generate")
PY
