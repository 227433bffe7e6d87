#!/usr/bin/env bash
# LyCORIS at multiplier 0 is not the base model if the adapter has DoRA.
#
# Expected: set_multiplier(0) turns an adapter off, and 0.5 gives about half of it, as for every kind without dora_wd.
# Seen: The multiplier scales only what DoRA does to the length of each row of weights; the low-rank part is added in
#   full at any multiplier. A LoRA, LoHa or LoKr with dora_wd that was trained to fit a target is at multiplier 0
#   about three times as far from the base as at 1, and twice as far at 0.5. restore gives the base. Nothing is said.
# Versions: lycoris-lora 4.1.3, torch 2.14.1.
# Harm: By multiplier 0 one has the reference model without a second copy: a KL penalty or DPO margin is then taken
#   against a model that nobody trained. Weakening an adapter that goes too far makes it go farther.
# genalign: It trains LoRA without DoRA, and takes its reference with the adapter off.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 lycoris-lora==4.1.3 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import logging
from importlib.metadata import version

import torch

logging.disable(logging.CRITICAL)
from lycoris import LycorisNetwork, create_lycoris

print("torch", torch.__version__, "lycoris-lora", version("lycoris-lora"))
torch.set_num_threads(1)
LycorisNetwork.apply_preset({"target_module": ["Linear"], "target_name": [".*"]})
rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
target = rows @ torch.randn(32, 32, generator=torch.Generator().manual_seed(2)) / 32**0.5


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(32, 32)

    def forward(self, rows):
        return self.layer(rows)


left = {}
for kind in ("lora", "loha", "lokr"):
    for dora in (False, True):
        net = Net()
        base = net(rows).detach()
        adapter = create_lycoris(net, 1.0, linear_dim=8, linear_alpha=8, algo=kind, factor=4, dora_wd=dora)
        adapter.apply_to()
        optimizer = torch.optim.Adam(adapter.parameters(), 1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            (net(rows) - target).square().mean().backward()
            optimizer.step()
        full = (net(rows).detach() - base).norm()
        shares = []
        for multiplier in (0.0, 0.5, 1.0):
            adapter.set_multiplier(multiplier)
            shares.append(((net(rows).detach() - base).norm() / full).item())
        adapter.restore()
        restored = (net(rows).detach() - base).norm().item()
        left[kind, dora] = shares
        print(f"{kind}{' with dora_wd' if dora else ''}: share of the change at multipliers 0, 0.5 and 1:",
              ", ".join(f"{share:.2f}" for share in shares), f"- restored: {restored}")
        assert restored == 0
still = all(abs(shares[0]) < 1e-6 and abs(shares[1] - 0.5) < 1e-3 for (_, dora), shares in left.items() if not dora)
still = still and all(left[kind, True][0] > left[kind, True][1] > 1.3 for kind in ("lora", "loha", "lokr"))
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
