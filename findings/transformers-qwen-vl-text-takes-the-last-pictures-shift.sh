#!/usr/bin/env bash
# A text that Qwen-VL decodes step by step is placed by the picture of an earlier, unrelated forward.
#
# Expected: What a forward with a key-value cache gives follows from its input and that cache.
# Seen: The shift of text positions behind a picture is kept on the model, not in the cache, and a text without any
#   picture does not clear it. Its prefill is right; each cached step afterwards counts from the last picture, and the
#   logits are those of other positions.
# Versions: transformers 5.24.0, Qwen2_5_VLForConditionalGeneration (Qwen3-VL and Qwen3.5 keep it likewise). generate
#   computes positions itself and is right.
# Harm: Own decoding loops (a rollout that steers, a judge's constrained answer) sample from wrong distributions in a
#   model that has also seen pictures, while the replay without a cache is right: importance ratios are off, silently.
# genalign: A judge's answers come from generate, its scores from one forward without a cache (reward/judge/local.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import transformers
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
PICTURE, START, END = 30, 32, 33
config = Qwen2_5_VLConfig(
    text_config=dict(
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 100.0},
    ),
    vision_config=dict(
        depth=1, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=32, patch_size=4,
        window_size=16, fullatt_block_indexes=[0],
    ),
    image_token_id=PICTURE, video_token_id=31, vision_start_token_id=START, vision_end_token_id=END,
)
model = Qwen2_5_VLForConditionalGeneration(config).eval()
with torch.no_grad():
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.mul_(6)  # so that logits have a spread that one can see
text = torch.tensor([[3, 4, 5, 6, 7, 8]])
seen = torch.tensor([[3, START, *[PICTURE] * 16, END, 4, 5]])
picture = dict(pixel_values=torch.randn(64, 96), image_grid_thw=torch.tensor([[1, 8, 8]]))


@torch.no_grad()
def stepwise() -> torch.Tensor:
    cache = DynamicCache(config=model.config.get_text_config())
    model(text[:, :-1], cache=cache, use_cache=True)
    return model(text[:, -1:], cache=cache, use_cache=True).logits[0, -1]


with torch.no_grad():
    whole = model(text, use_cache=False).logits[0, -1]
    fresh = (stepwise() - whole).abs().max().item()
    model(seen, mm_token_type_ids=(seen == PICTURE).long(), **picture)
    later = (stepwise() - whole).abs().max().item()
    again = (model(text, use_cache=False).logits[0, -1] - whole).abs().max().item()
print(f"logits of the text's last token, spread {whole.std().item():.2f}")
print(f"step by step on a fresh model: off by {fresh:.1e}; after another row's picture: off by {later:.2f}")
print(f"the whole text at once, after the picture: off by {again:.1e}")
still = fresh < 1e-4 and again < 1e-4 and later > 0.05

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
