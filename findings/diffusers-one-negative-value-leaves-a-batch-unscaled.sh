#!/usr/bin/env bash
# One value of -0.000001 in a batch of tensors leaves all of its pictures unscaled.
#
# Expected: preprocess maps pictures in [0,1] to [-1,1], each by itself; a value a rounding error below 0 changes
#   nothing that one can see.
# Seen: The smallest value of the whole batch decides whether it is taken as scaled already. With one below 0 in one
#   picture the others stay in [0,1], and the autoencoder reads them as pale pictures without any black: off by up to 1
#   of 2. Only a deprecation warning about ranges says so.
# Versions: diffusers 0.42.1, VaeImageProcessor.preprocess (image to image, inpainting, editing, encoding for training).
# Harm: Bicubic resizing and every "0.5 * x + 0.5" in floating point give such values now and then, so some batches of
#   a training set are encoded wrongly, at random, and depend on their neighbours.
# genalign: Clamps what it draws (policy/tracks.py) and what it resizes (media/image.py) to [0,1]; what a prompt brings
#   goes to the pipeline as PIL.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import warnings

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor

warnings.simplefilter("ignore")
print("torch", torch.__version__, "diffusers", diffusers.__version__)
torch.manual_seed(0)
first, second = torch.rand(2, 1, 3, 64, 64)
second[0, 0, 0, 0] = 0.0
below = second.clone()
below[0, 0, 0, 0] = -1e-6
processor = VaeImageProcessor(vae_scale_factor=8)


def read_beside(neighbour: torch.Tensor) -> torch.Tensor:
    return processor.preprocess(torch.cat([first, neighbour]))[0]


right, wrong = read_beside(second), read_beside(below)
off = (right - wrong).abs().max().item()
print(f"range of the first picture beside one of at least 0: {right.min().item():.3f} to {right.max().item():.3f}")
print(f"beside one with a single value of -1e-6: {wrong.min().item():.3f} to {wrong.max().item():.3f}, off by {off:.3f}")
still = torch.allclose(right, 2 * first[0] - 1) and torch.equal(wrong, first[0])

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
