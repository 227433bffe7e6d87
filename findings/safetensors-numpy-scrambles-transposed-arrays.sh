#!/usr/bin/env bash
# safetensors.numpy saves a transposed or strided array with its elements in the wrong places.
#
# Expected: save_file writes the array's values in its shape, or refuses an array that is not contiguous, as
#   safetensors.torch does.
# Seen: The memory is written as it lies, under the array's shape: a transposed 2x3 array comes back as a plain
#   reshape, a strided one with its neighbours' values. No error, no warning.
# Versions: safetensors 0.8.0.
# Harm: Weights converted by way of numpy (JAX or TensorFlow checkpoints, where a transpose is the usual step),
#   features and latents written from numpy are scrambled; shapes and statistics look right.
# genalign: It writes by safetensors.torch, which refuses such arrays. Converters should call
#   numpy.ascontiguousarray.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile safetensors==0.8.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__)
matrix = np.arange(6).reshape(2, 3)
arrays = {"contiguous": matrix, "transposed": matrix.T, "strided": np.arange(12).reshape(3, 4)[:, ::2]}
equal = {}
for name, array in arrays.items():
    save_file({name: array}, "array.safetensors")
    read = load_file("array.safetensors")[name]
    equal[name] = np.array_equal(read, array)
    print(f"{name}: wrote {array.tolist()}, read {read.tolist()}")
still = equal == {"contiguous": True, "transposed": False, "strided": False}

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
