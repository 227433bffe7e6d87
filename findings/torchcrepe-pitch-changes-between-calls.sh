#!/usr/bin/env bash
# torchcrepe finds another pitch for the same wave at each call, and moves numpy's global noise.
#
# Expected: A pitch tracker with fixed weights returns the same for the same wave, and torch.manual_seed covers
#   what is random in a torch package.
# Seen: Frequencies are dithered with numpy's global generator: two calls on a clean 440 Hz tone differ by
#   several Hz in some frames; torch's seed has no effect, numpy's has, and each call moves it on.
# Versions: torchcrepe 0.0.24, model tiny.
# Harm: A pitch or melody reward is noisy: equal samples get different scores, which group-relative methods
#   amplify when their standard deviation is otherwise 0; a replay of rewards does not reproduce them.
# genalign: No pitch reward is shipped; one must seed numpy by sample.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchcrepe==0.0.24 torchaudio==2.11.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import torch
import torchcrepe

print("torch", torch.__version__, "numpy", np.__version__)
wave = torch.from_numpy((0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)).astype(np.float32))[None]


def pitch() -> torch.Tensor:
    return torchcrepe.predict(wave, 16000, hop_length=160, model="tiny")


torch.manual_seed(0)
first = pitch()
torch.manual_seed(0)
second = pitch()
np.random.seed(0)
third = pitch()
np.random.seed(0)
fourth = pitch()
print(f"torch seeded: frames differ by up to {(first - second).abs().max().item():.1f} Hz; "
      f"numpy seeded: {(third - fourth).abs().max().item():.1f} Hz")
still = not torch.equal(first, second) and torch.equal(third, fourth)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
