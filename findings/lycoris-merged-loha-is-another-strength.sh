#!/usr/bin/env bash
# A LoHa or LoKr of LyCORIS changes its strength when it is merged.
#
# Expected: merge_to leaves the network that was trained, as it does for LoRA, GLoRA, OFT and whole differences.
# Seen: alpha / dim is multiplied in twice on merging. At dim 4 and alpha 1 a quarter is left of a LoHa and of a LoKr,
#   at alpha 2 one half. Only at alpha = dim, or if both factors of a LoKr are full, is the merged network the trained
#   one. Merging the network that was trained and merging a file that was read again are alike; the file itself,
#   applied, is right. Nothing is said.
# Versions: lycoris-lora 4.1.3, torch 2.14.1.
# Harm: alpha 1 is what the package's own functions take unless told, and half of dim what many recipes take. A merged
#   model is nearly the base: its rewards fall back, and the training seems not to have held.
# genalign: It trains LoRA, and `policy.merged` measures what is kept.
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
from lycoris import LycorisNetwork, create_lycoris, create_lycoris_from_weights

print("torch", torch.__version__, "lycoris-lora", version("lycoris-lora"))
torch.set_num_threads(1)
LycorisNetwork.apply_preset({"target_module": ["Linear"], "target_name": [".*"]})


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(32, 32)

    def forward(self, rows):
        return self.layer(rows)


kept = {}
rows = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
for kind in ("lora", "glora", "loha", "lokr"):
    for alpha in (4, 2, 1):
        net = Net()
        base = net(rows).detach()
        adapter = create_lycoris(net, 1.0, linear_dim=4, linear_alpha=alpha, algo=kind, factor=2)
        adapter.apply_to()
        torch.manual_seed(2)
        for weights in adapter.parameters():  # as training would leave it
            weights.data.add_(0.1 * torch.randn_like(weights))
        trained = net(rows).detach()
        file = {key: weights.detach().clone() for key, weights in adapter.state_dict().items()}
        adapter.restore()
        adapter.merge_to(1.0)
        results = {"merged": net(rows).detach()}
        for way in ("applied", "merged"):
            net = Net()
            again, _ = create_lycoris_from_weights(1.0, "", net, weights_sd=dict(file))
            again.apply_to() if way == "applied" else again.merge_to(1.0)
            results[f"{way} from a file"] = net(rows).detach()
        change = (trained - base).norm()
        kept[kind, alpha] = {name: ((result - base).norm() / change).item() for name, result in results.items()}
        print(f"{kind}, dim 4, alpha {alpha}: share of the trained change,",
              ", ".join(f"{name}: {share:.3f}" for name, share in kept[kind, alpha].items()))
still = True
for (kind, alpha), shares in kept.items():
    expected = alpha / 4 if kind in ("loha", "lokr") else 1.0
    still = still and abs(shares["applied from a file"] - 1) < 1e-3
    still = still and all(abs(shares[name] - expected) < 1e-3 for name in ("merged", "merged from a file"))
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
