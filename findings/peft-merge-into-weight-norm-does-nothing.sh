#!/usr/bin/env bash
# Merging a LoRA into a layer with weight norm or spectral norm gives the base model back.
#
# Expected: merge_and_unload gives a model with the outputs of the adapted one, or says that it cannot.
# Seen: Of a plain layer it does, to 1e-6. Of a convolution or linear layer under weight_norm (of torch's
#   parametrizations, or the older one) or spectral_norm the merged model is the base model, bit for bit: the delta is
#   added to a weight that is computed anew from its length and direction at the next call. Nothing is said, with
#   safe_merge=True neither.
# Versions: peft 0.21.2, torch 2.13.0 and 2.14.1.
# Harm: Vocoders, neural codecs and encoders of speech have weight norm on their convolutions. The adapter is measured
#   and liked, the merged model is published, and it is the untrained one.
# genalign: policy.merged refuses such a layer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

print("torch", torch.__version__, "peft", peft.__version__)
new = nn.utils.parametrizations
LAYERS = {
    "plain convolution": lambda: nn.Conv1d(8, 8, 7, padding=3),
    "convolution, weight_norm": lambda: new.weight_norm(nn.Conv1d(8, 8, 7, padding=3)),
    "convolution, older weight_norm": lambda: nn.utils.weight_norm(nn.Conv1d(8, 8, 7, padding=3)),
    "plain linear": lambda: nn.Linear(64, 64),
    "linear, weight_norm": lambda: new.weight_norm(nn.Linear(64, 64)),
    "linear, spectral_norm": lambda: new.spectral_norm(nn.Linear(64, 64)),
}


class Network(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sounds: torch.Tensor) -> torch.Tensor:
        return self.layer(sounds)


still = True
for name, layer in LAYERS.items():
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["layer"], init_lora_weights=False)  # random, as if trained
    tuned = get_peft_model(Network(layer()), config).eval()
    sounds = torch.randn(1, 8, 64)
    with torch.no_grad():
        adapted = tuned(sounds)
        with tuned.disable_adapter():
            base = tuned(sounds)
        merged = tuned.merge_and_unload(safe_merge=True)(sounds)
    from_adapted, from_base = float((merged - adapted).abs().max()), float((merged - base).abs().max())
    print(f"{name}: merged differs from the adapted model by {from_adapted:.1e}, from the base by {from_base:.1e}")
    still &= (from_adapted < 1e-4 < from_base) if name.startswith("plain") else (from_base == 0.0 < 0.1 < from_adapted)
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
