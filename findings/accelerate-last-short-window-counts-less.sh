#!/usr/bin/env bash
# With gradient accumulation the samples of an epoch's last, short window count less.
#
# Expected: accumulate() averages the gradients of the micro-batches that were accumulated.
# Seen: The loss is divided by gradient_accumulation_steps also where the epoch ends earlier: 9 micro-batches
#   and 4 steps give two full updates and one of a quarter of the gradient.
# Versions: accelerate 1.15.0.
# Harm: With few prompts an epoch (usual in alignment) one update in three or four is too small, always for the
#   last samples; with Adam a small gradient is not a small step, but the ratio of loss and KL terms that are
#   not divided changes, and clipping sees another norm.
# genalign: It does not use accumulate(); its loop weighs the micro-batches of an update itself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import accelerate
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

print("torch", torch.__version__, "accelerate", accelerate.__version__)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
net = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.zeros_(net.weight)
net, optimizer, loader = accelerator.prepare(
    net, torch.optim.SGD(net.parameters(), lr=1.0), DataLoader(torch.ones(9, 1), batch_size=1)
)
moves = []
for x in loader:  # every micro-batch has the gradient 1
    with accelerator.accumulate(net):
        before = net.weight.item()
        accelerator.backward(net(x).sum())
        optimizer.step()
        optimizer.zero_grad()
        if net.weight.item() != before:
            moves.append(round(before - net.weight.item(), 4))
print("updates of 4, 4 and 1 micro-batches:", moves)
still = moves == [1.0, 1.0, 0.25]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
