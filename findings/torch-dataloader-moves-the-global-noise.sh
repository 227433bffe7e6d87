#!/usr/bin/env bash
# Going through a DataLoader in order moves torch's global noise on.
#
# Expected: A DataLoader without shuffling and without workers draws no random numbers, so an evaluation between
#   two training steps leaves training as it was.
# Seen: Each iter() draws one 64-bit base seed from the global generator. With a generator of its own it does
#   not.
# Versions: torch 2.13.0 and 2.14.1.
# Harm: How often one evaluates changes all noise drawn afterwards: a run with evaluation every 10 steps is
#   another run than one with evaluation every 50, and a resumed run leaves the recorded one.
# genalign: Each sample has a generator of its own, so it is out of reach; rewards of users that use a
#   DataLoader are not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
from torch.utils.data import DataLoader

print("torch", torch.__version__)


def next_noise(loader: DataLoader | None) -> float:
    torch.manual_seed(0)
    if loader is not None:
        list(loader)
    return torch.rand(()).item()


plain = next_noise(None)
after = next_noise(DataLoader(range(4), shuffle=False))
own = next_noise(DataLoader(range(4), shuffle=False, generator=torch.Generator().manual_seed(1)))
print(f"next number: {plain:.4f} without, {after:.4f} after a loader, {own:.4f} after a loader with its own generator")
still = plain != after and plain == own

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
