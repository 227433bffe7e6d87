#!/usr/bin/env bash
# accelerate's prepare turns the model itself into a bfloat16 one, and unwrap_model does not turn it back.
#
# Expected: prepare returns a wrapped model; the original object, and what unwrap_model returns, computes as
#   before.
# Seen: On one process the original object is returned with a replaced forward that runs under autocast;
#   unwrap_model keeps it by default (keep_fp32_wrapper=True), so its outputs still differ by bfloat16 rounding.
#   Only keep_fp32_wrapper=False gives the original forward.
# Versions: accelerate 1.15.0, mixed_precision="bf16".
# Harm: A reference, an EMA copy by deepcopy, a reward that shares the backbone, or an evaluation of the
#   "unwrapped" model is a bfloat16 one: log-probabilities recorded before prepare and after it differ by more
#   than an update does.
# genalign: It does not use accelerate's mixed precision. A user's model that was prepared so should be
#   unwrapped with keep_fp32_wrapper=False.
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

print("torch", torch.__version__, "accelerate", accelerate.__version__)
torch.manual_seed(0)
net, x = torch.nn.Linear(64, 64), torch.randn(4, 64)
before = net(x)
accelerator = Accelerator(cpu=True, mixed_precision="bf16")
prepared = accelerator.prepare(net)
found = {
    "the original object": (net(x) - before).abs().max().item(),
    "unwrap_model": (accelerator.unwrap_model(prepared)(x) - before).abs().max().item(),
    "unwrap_model(keep_fp32_wrapper=False)": (
        accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)(x) - before
    ).abs().max().item(),
}
for name, error in found.items():
    print(f"{name}: output differs by {error:.4f}")
values = list(found.values())
still = values[0] > 1e-3 and values[1] > 1e-3 and values[2] == 0

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
