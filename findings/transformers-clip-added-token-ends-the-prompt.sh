#!/usr/bin/env bash
# With an added token in the prompt, CLIP's pooled text feature ignores what comes after it.
#
# Expected: The text feature is read at the end-of-text token, so all words of the prompt count.
# Seen: Where the configuration says eos_token_id 2 (as published CLIP and Stable Diffusion text encoders do),
#   the feature is read at the largest token id. An added token (textual inversion, a special token) has a
#   larger id than end-of-text, so the feature is read there: all words after it have no effect.
# Versions: transformers 5.24.0.
# Harm: Personalised prompts ("<dog> swimming in the sea") get one CLIP score for every scene, and SDXL's pooled
#   embedding does not see the scene: the reward cannot tell the samples' prompts apart.
# genalign: Its CLIP head reads open_clip's own text tower and tokenizer, without added tokens. Rewards by
#   transformers' CLIP should refuse tokens beyond the end-of-text id.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import transformers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

print("torch", torch.__version__, "transformers", transformers.__version__)


def feature(eos: int, *words: int) -> torch.Tensor:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=8, bos_token_id=57, eos_token_id=eos, pad_token_id=58,
    )
    model = CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([[57, *words, 58]])).text_embeds


still = True
for eos in (2, 58):
    for name, first in (("plain", 9), ("added", 59)):
        apart = (feature(eos, first, 5, 6) - feature(eos, first, 7, 8)).abs().max().item()
        print(f"eos_token_id {eos}, {name} token first: other words after it change the feature by {apart:.3f}")
        still = still and (apart == 0) == (eos == 2 and name == "added")

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
