#!/usr/bin/env bash
# transformers' Adafactor is rounded to bfloat16 when it is resumed, and the resumed run is another run.
#
# Expected: state_dict and load_state_dict give the same optimizer back: with equal data the resumed run is equal to the
#   run that was not interrupted.
# Seen: For bfloat16 weights Adafactor keeps its second moments in float32, where their slow decay needs the digits.
#   torch's load_state_dict casts every state of floating point to its weight's type, so that they come back rounded to
#   bfloat16, two to three digits, and the weights of the resumed run differ. AdamW keeps its moments in the weight's
#   type anyway, and resumes exactly.
# Versions: transformers 5.24.0, torch 2.13.0.
# Harm: Adafactor is chosen where memory is short, with bfloat16 weights. A resumed run cannot be told from one whose data
#   or seeds went wrong, and comparing it with the uninterrupted one finds a difference that is nobody's fault.
# genalign: Its optimizers' states are put back as they were, tested to the last bit.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
import transformers
from torch import nn
from transformers.optimization import Adafactor

print("torch", torch.__version__, "transformers", transformers.__version__)
INPUTS = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
TARGETS = INPUTS[:, :4].sin()


def made(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).bfloat16()
    options = {"relative_step": False, "scale_parameter": False} if kind is Adafactor else {}
    return network, kind(network.parameters(), lr=1e-2, **options)


def train(network, optimizer, steps):
    for step in steps:
        rows = slice(step * 8 % 64, step * 8 % 64 + 8)
        optimizer.zero_grad()
        (network(INPUTS[rows]) - TARGETS[rows]).square().mean().backward()
        optimizer.step()


def moments(optimizer):
    states = (entry for state in optimizer.state.values() for entry in state.items())
    return sorted({str(value.dtype) for name, value in states if name.startswith("exp_avg_sq")})


def compare(kind):
    network, optimizer = made(kind)
    train(network, optimizer, range(20))
    torch.save([network.state_dict(), optimizer.state_dict()], "state.pt")
    train(network, optimizer, range(20, 40))
    resumed, other = made(kind)
    weights, state = torch.load("state.pt")
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    types = [moments(optimizer), moments(other)]
    train(resumed, other, range(20, 40))
    off = max(float((a - b).abs().max()) for a, b in zip(network.parameters(), resumed.parameters(), strict=True))
    print(f"{kind.__name__}: second moments {types[0]}, after resuming {types[1]}; weights differ by up to {off}")
    return types, off


types, off = compare(Adafactor)
_, exact = compare(torch.optim.AdamW)
still = types == [["torch.float32"], ["torch.bfloat16"]] and off > 1e-4 and exact == 0

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
