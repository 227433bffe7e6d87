#!/usr/bin/env bash
# torch.multinomial without replacement returns entries of probability zero.
#
# Expected: With fewer positive entries than draws, torch.multinomial(replacement=False) raises an error, as its
#   documentation says that the number of non-zero entries must be at least num_samples.
# Seen: On the CPU it returns indices whose probability is zero, without an error or a warning.
# Versions: torch 2.13.0 and 2.14.1, CPU.
# Harm: Drawing k distinct tokens, candidates or preference pairs after top-k, masks or filters (probability set
#   to zero) silently brings back what was filtered out: a banned token, a prompt that has no pair, a rejected
#   sample.
# genalign: It does not use this call; orders are permutations. Whoever uses it must count the positive entries
#   first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch

print("torch", torch.__version__)
torch.manual_seed(0)
weights = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])
drawn = torch.multinomial(weights, 3, replacement=False)
print("weights", weights.tolist(), "drawn", drawn.tolist(), "of weights", weights[drawn].tolist())
still = bool((weights[drawn] == 0).any())

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
