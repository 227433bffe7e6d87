#!/usr/bin/env bash
# LoRA on parts of torch's attention modules has no effect, and no gradient.
#
# Expected: A layer that peft lists as adapted takes part in the forward, so its adapter changes the output and
#   gets a gradient.
# Seen: nn.MultiheadAttention reads out_proj.weight itself, and nn.TransformerEncoderLayer in eval mode runs a
#   fused kernel on the base weights: a LoRA on out_proj (in either mode), or on linear1 and linear2 (in eval
#   mode), changes nothing, with no error. In train mode linear1 and linear2 do work.
# Versions: peft 0.21.2 with torch 2.13.0 and 2.14.1; open_clip builds its towers from nn.MultiheadAttention.
# Harm: The adapted reward model or encoder trains with a part of its adapters dead; or trains right and is
#   evaluated, in eval mode, as the base model.
# genalign: After the first update a warning names adapted layers that got no gradient, from a tenth of them on
#   (training/backend.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import copy

import peft
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

print("torch", torch.__version__, "peft", peft.__version__)
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.attn(x, x, x, need_weights=False)[0])


def effect(base: nn.Module, targets: list[str], train: bool) -> float:
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    model, x = get_peft_model(copy.deepcopy(base), config).train(train), torch.randn(2, 5, 16)
    with model.disable_adapter():
        without = model(x)
    return (model(x) - without).abs().max().item()


encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
found = {
    "MultiheadAttention out_proj, train": effect(Block(), ["out_proj"], True),
    "MultiheadAttention out_proj, eval": effect(Block(), ["out_proj"], False),
    "TransformerEncoderLayer linear1+2, train": effect(encoder, ["linear1", "linear2"], True),
    "TransformerEncoderLayer linear1+2, eval": effect(encoder, ["linear1", "linear2"], False),
}
for name, difference in found.items():
    print(f"{name}: the adapter changes the output by {difference:.3f}")
values = list(found.values())
still = values[0] == values[1] == values[3] == 0 and values[2] > 0.1

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
