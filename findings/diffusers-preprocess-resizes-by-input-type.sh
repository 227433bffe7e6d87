#!/usr/bin/env bash
# VaeImageProcessor resizes a PIL image with Lanczos and the same tensor with nearest neighbour.
#
# Expected: One picture gives one input to the autoencoder, whether it is handed over as PIL, numpy or torch;
#   the resampling filter that the processor is configured with (lanczos) holds.
# Seen: PIL images are resized with the filter; arrays and tensors by interpolate's default, nearest, without
#   smoothing. On a detailed picture halved in size, values in [-1, 1] differ by 0.44 on average.
# Versions: diffusers 0.42.1, Pillow 12 and 13.
# Harm: Image-to-image, image-to-video and preference pairs encoded for Diffusion-DPO get aliased pictures when
#   they come as tensors, and winners and losers that come in different types differ by more than their quality.
# genalign: Images of another size are resized by its own antialiased function before the autoencoder sees them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2 \
  pillow==12.0.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import numpy as np
import PIL
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

print("torch", torch.__version__, "diffusers", diffusers.__version__, "Pillow", PIL.__version__)
pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
processor = VaeImageProcessor(vae_scale_factor=8)
unit = torch.from_numpy(pixels / 255).permute(2, 0, 1)[None].float()
from_pil = processor.preprocess(Image.fromarray(pixels), 32, 32)
from_tensor = processor.preprocess(unit, 32, 32)
nearest = torch.nn.functional.interpolate(unit, (32, 32), mode="nearest") * 2 - 1
print(f"PIL against tensor: {(from_pil - from_tensor).abs().mean().item():.3f} on average; "
      f"tensor against nearest neighbour: {(from_tensor - nearest).abs().max().item():.3f} at most")
still = (from_pil - from_tensor).abs().mean() > 0.2 and torch.allclose(from_tensor, nearest)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
