#!/usr/bin/env bash
# RWKV, decoding a batch step by step, mixes its rows.
#
# Expected: Greedy generation gives two prompts of one length, without any padding, the texts that each gets alone.
# Seen: The first token is right. From the second on, read from the recurrent state, a vector a row is broadcast against
#   a batch of single tokens, and each row takes up the others: logits off by more than their spread, no error. Without
#   the state (use_cache=False), or alone, all is right.
# Versions: transformers 5.24.0, RwkvForCausalLM.
# Harm: Completions sampled in batches are poor and depend on their neighbours, while evaluation by one forward over
#   whole texts looks fine; log-probabilities of the two do not agree.
# genalign: Was affected: it samples in batches. It now compares two rows of a batch with each alone, once a model, and
#   a model that mixes them samples rows one by one (policy/apart.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import transformers
from transformers import RwkvConfig, RwkvForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
config = RwkvConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, bos_token_id=None, eos_token_id=None,
    pad_token_id=0,
)
model = RwkvForCausalLM(config).eval()
with torch.no_grad():
    for weight in model.parameters():
        weight.mul_(4 if weight.dim() > 1 else 1)  # so that logits have a spread that one can see


def written(prompts: list[list[int]], cached: bool) -> tuple[list[int], torch.Tensor]:
    """The first row's tokens and their logits."""
    ids = torch.tensor(prompts)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, use_cache=cached,
        output_logits=True, return_dict_in_generate=True,
    )
    return out.sequences[0, 4:].tolist(), torch.stack(out.logits)[:, 0]


first, second = [5, 6, 7, 8], [9, 3, 2, 1]
text, right = written([first], False)
print(f"spread of the logits {right.std().item():.2f}; alone, without the state: {text}")
off = {}
for prompts in ([first], [first, second]):
    for cached in (False, True):
        tokens, logits = written(prompts, cached)
        apart = (logits - right).abs().amax(1).tolist()
        off[len(prompts), cached] = apart
        print(f"rows {len(prompts)}, state {cached}: {tokens}, logits off by {[round(value, 4) for value in apart]}")
mixed = off.pop((2, True))
still = mixed[0] < 1e-3 and mixed[1] > 0.5 and max(max(values) for values in off.values()) < 1e-3

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
