#!/usr/bin/env bash
# The LoRA of a convolution that pads in a circle, by reflection or by its edge pads with zeros.
#
# Expected: The adapted layer is W + s B A with the layer's own padding: pictures that tile go on to tile, and the
#   merged model gives what the adapted one gave.
# Seen: The convolution of A is made with the size, stride and width of padding of the layer, and without its
#   padding_mode. With "circular" a picture moved by 3 columns no longer gives the output moved by 3 columns, and
#   merging changes the outputs at the borders by half of what the LoRA changes them at all; inside they agree. "zeros"
#   is right. Nothing is said.
# Versions: peft 0.21.2, torch 2.13.0 and 2.14.1.
# Harm: Textures and panoramas that tile are made by circular padding, which is set on all convolutions of a UNet or
#   autoencoder; audio codecs pad by reflection. The LoRA brings the seam back, and its merged form is another model.
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
pictures = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
still = True
for mode in ("zeros", "circular", "reflect", "replicate"):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode))
    tuned = get_peft_model(layer, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)).eval()
    with torch.no_grad():
        adapted = tuned(pictures)
        seam = (tuned(pictures.roll(3, -1)).roll(-3, -1) - adapted).abs().amax().item()
        with tuned.disable_adapter():
            base = tuned(pictures)
            base_seam = (tuned(pictures.roll(3, -1)).roll(-3, -1) - base).abs().amax().item()
        off = (tuned.merge_and_unload(safe_merge=True)(pictures) - adapted).abs()
    effect, border, inside = (adapted - base).abs().max().item(), off.max().item(), off[..., 1:-1, 1:-1].max().item()
    print(f"{mode}: the LoRA changes outputs by {effect:.2f}; merging it changes them by {border:.2f} at the borders,"
          f" {inside:.0e} inside; moved by 3 columns: base off by {base_seam:.2f}, adapted by {seam:.2f}")
    still &= inside < 1e-5 and (border < 1e-5 if mode == "zeros" else border > 0.3 * effect)
    if mode == "circular":
        still &= base_seam < 1e-5 < 0.3 * effect < seam
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
