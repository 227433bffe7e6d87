#!/usr/bin/env bash
# MiniMax samples a left-padded row's first token from the right distribution and all others from wrong ones.
#
# Expected: generate on a left-padded batch with its attention mask gives each row the logits that it has alone, up to
#   rounding, with a cache as without.
# Seen: Where the first layer is one of linear attention, the cache takes its length from that layer, which has none:
#   0 for ever. From the second token on a padded row attends to its padding. Without a cache, and for rows without
#   padding, all is right. The classes tried beside it (Mamba, RecurrentGemma) are exact.
# Versions: transformers 5.24.0, MiniMaxForCausalLM, layer_types that begin with "linear_attention".
# Harm: In a batch of prompts of several lengths all but the longest get worse completions, and the log-probabilities
#   of a forward without cache are not those that they were drawn with: importance ratios are wrong.
# genalign: Was affected: it samples left-padded batches. It now compares two rows of a batch with each alone, once a
#   model, and a model that reads padding samples rows one by one (policy/apart.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import transformers
from transformers import MiniMaxConfig, MiniMaxForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__)


def off(first: str, padding: int, cached: bool) -> list[float]:
    """By how much the logits of five tokens differ from those of the row alone, as a share of their spread."""
    torch.manual_seed(0)
    config = MiniMaxConfig(
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, num_local_experts=2, num_experts_per_tok=1, block_size=4,
        layer_types=[first, "full_attention"], pad_token_id=0, bos_token_id=None, eos_token_id=None,
        initializer_range=0.2,
    )
    model = MiniMaxForCausalLM(config).eval()
    prompt = [5, 6, 7, 8, 9, 10]

    def logits(pads: int, cache: bool) -> torch.Tensor:
        ids = torch.tensor([[0] * pads + prompt])
        return torch.cat(
            model.generate(
                ids, attention_mask=(ids != 0).long(), max_new_tokens=5, do_sample=False, use_cache=cache,
                output_logits=True, return_dict_in_generate=True,
            ).logits
        )

    alone, padded = logits(0, False), logits(padding, cached)
    return [round(value, 4) for value in ((padded - alone).abs().amax(1) / alone.std()).tolist()]


found = {
    "a linear layer first, 6 pads, cache": off("linear_attention", 6, True),
    "a linear layer first, 6 pads, no cache": off("linear_attention", 6, False),
    "a linear layer first, no pads, cache": off("linear_attention", 0, True),
    "full attention first, 6 pads, cache": off("full_attention", 6, True),
}
for name, values in found.items():
    print(f"{name}: logits of five tokens off by {values}")
wrong, *right = found.values()
still = wrong[0] < 1e-3 and min(wrong[1:]) > 0.02 and max(max(values) for values in right) < 1e-3

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
