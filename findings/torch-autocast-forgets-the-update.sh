#!/usr/bin/env bash
# Inside one autocast block a forward after the optimizer's step still uses the old weights.
#
# Expected: After optimizer.step() the next forward uses the updated weights.
# Seen: autocast keeps its bfloat16 copies of float32 weights until the outermost block ends: within the block
#   the output is bit-equal to that before the update.
# Versions: torch 2.13.0 and 2.14.1, CPU (the cache is the same code on CUDA).
# Harm: A training loop inside one `with autocast` trains on, but every policy ratio after an update is exactly
#   1 and an EMA or reference forward after a swap of weights is the policy's; PPO's and GRPO's second epochs
#   learn nothing from their ratio.
# genalign: Its loop opens no autocast block around an update. A user's reward or model that does must open one
#   per forward.
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
net, x = torch.nn.Linear(8, 8), torch.randn(4, 8)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
with torch.autocast("cpu", dtype=torch.bfloat16):
    before = net(x)
    before.float().square().sum().backward()
    optimizer.step()
    inside = net(x)
with torch.autocast("cpu", dtype=torch.bfloat16):
    outside = net(x)
print(f"after the update: inside the block {(inside - before).abs().max().item():.3f} from before, "
      f"in a new block {(outside - before).abs().max().item():.3f}")
still = torch.equal(inside, before) and not torch.equal(outside, before)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
