#!/usr/bin/env bash
# compute_transition_scores gives log-probabilities to the padding after the end of a text.
#
# Expected: The log-probabilities of a generated row end with its end-of-sequence token; padding has 0, so a sum
#   is the text's log-probability.
# Seen: Padding gets the log-probability that the model happened to give to the padding id at each step; the sum
#   is that of no text.
# Versions: transformers 5.24.0.
# Harm: Sequence log-probabilities for DPO, KTO, best-of-n by likelihood or importance weights are too low for
#   rows that ended early, the more the longer the longest row of their batch is.
# genalign: Log-probabilities come from its own replay under a completion mask.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    vocab_size=9, pad_token_id=0, eos_token_id=1, bos_token_id=None,
)).eval()
made = model.generate(
    torch.tensor([[3, 4]] * 16), attention_mask=torch.ones(16, 2, dtype=torch.long), do_sample=True, top_k=0,
    max_new_tokens=8, output_scores=True, return_dict_in_generate=True,
)
scores = model.compute_transition_scores(made.sequences, made.scores, normalize_logits=True)
tokens = made.sequences[:, 2:]
after_end = (tokens == 1).long().cumsum(1).sub((tokens == 1).long()).gt(0)
row = int(after_end.sum(1).argmax())
print("tokens", tokens[row].tolist(), "(1 is the end, 0 padding)")
print("scores", [round(s, 2) for s in scores[row].tolist()])
still = bool(after_end.any()) and bool((scores[after_end] < -0.1).all())

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
