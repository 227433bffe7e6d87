#!/usr/bin/env bash
# A sequence classifier's score is read by token id alone: not at an end token used as padding, but at masked
# tokens.
#
# Expected: A reward model's score is read at the last token that the attention mask keeps.
# Seen: The mask is not looked at. It is the last token whose id is not the padding id: where padding and end-
#   of-sequence are one id (a common setting), the score is read one token before the end, in every row; and a
#   row padded with another id is scored at its padding.
# Versions: transformers 5.24.0, LlamaForSequenceClassification (all classes of this kind share the code).
# Harm: Scores come from a position that was not trained; trained and served templates differ by one token
#   without an error, and a collator that pads with another id than the model's config gives scores of padding.
# genalign: reward/heads/classifier.py never pads and leaves the token that is read to the checkpoint's config,
#   as published reward models expect. A row in docs for users' own reward models.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForSequenceClassification

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    vocab_size=9, pad_token_id=1, eos_token_id=1, bos_token_id=None, num_labels=1,
)
model = LlamaForSequenceClassification(config).eval()


def scored_at(ids: list[int], mask: list[int]) -> int:
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([mask])}
    with torch.no_grad():
        everywhere = model.score(model.model(**inputs).last_hidden_state)[0, :, 0]
        return (everywhere - model(**inputs).logits[0, 0]).abs().argmin().item()


with_end = scored_at([3, 4, 5, 1], [1, 1, 1, 1])
masked = scored_at([3, 4, 5, 6], [1, 1, 1, 0])
print(f"tokens 3 4 5 END, all kept by the mask: scored at position {with_end} of 0..3")
print(f"tokens 3 4 5 6, the last one masked: scored at position {masked} of 0..3")
still = with_end == 2 and masked == 3

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
