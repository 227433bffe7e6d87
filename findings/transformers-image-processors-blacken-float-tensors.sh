#!/usr/bin/env bash
# Image processors turn a float picture in [0,1] black.
#
# Expected: A float tensor in [0,1], the form in which diffusion pipelines hand pictures out with output_type "pt",
#   gives the pixel_values of the same picture in 8 bits, or an error.
# Seen: It is divided by 255 like integers: all values are those of black or nearly so, in each of the processors
#   tried. Nothing is raised or logged.
# Versions: transformers 5.24.0 (CLIP, SigLIP, ViT, BLIP, Qwen2-VL, Gemma 3, LLaVA-OneVision).
# Harm: A reward or judge between a pipeline and a transformers model scores black squares. Scores still differ a
#   little between samples, so advantages look alive and training follows noise.
# genalign: Hands over PIL pictures; where gradients flow, floats with do_rescale=False (reward/judge/local.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 pillow==13.0.0 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY' 2>&1
import torch
import transformers
from transformers import (
    BlipImageProcessor,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    LlavaOnevisionImageProcessor,
    Qwen2VLImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
levels = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
kinds = (
    CLIPImageProcessor, SiglipImageProcessor, ViTImageProcessor, BlipImageProcessor, Qwen2VLImageProcessor,
    Gemma3ImageProcessor, LlavaOnevisionImageProcessor,
)
still = True
for kind in kinds:
    processor = kind()
    black, right, floats, told = (
        processor(picture, return_tensors="pt", **options)["pixel_values"].float()
        for picture, options in (
            (torch.zeros_like(levels), {}), (levels, {}), (levels / 255, {}), (levels / 255, {"do_rescale": False})
        )
    )
    spread = [(values - black).abs().max().item() for values in (right, floats, told)]
    print(f"{kind.__name__}: furthest from black: 8 bits {spread[0]:.2f}, floats {spread[1]:.3f}, "
          f"floats with do_rescale=False {spread[2]:.2f}")
    still = still and spread[1] < 0.02 and spread[0] > 1.5 and spread[2] > 1.5

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
