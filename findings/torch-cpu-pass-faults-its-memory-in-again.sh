#!/usr/bin/env bash
# A warmed-up forward pass on a CPU has its memory mapped, zeroed and faulted in anew, every time.
#
# Expected: the second pass of one shape reuses the memory of the first, as it does on a GPU, where torch keeps what is
#   freed; a handful of page faults at most.
# Seen: tens of thousands of page faults a pass (51,000 for six layers of width 192 at 64 rows of 89 tokens), 15 to 30% of
#   the CPU time. Blocks of the size of an activation are beyond glibc's thresholds, so each free hands the pages back
#   to the system. Two mallopt calls make it none.
# Versions: torch 2.13.0 on glibc (printed).
# Harm: training and sampling of small models on a CPU, tests and CI among them, cost up to a third more; a profile of
#   torch's operators shows it nowhere, for it is spread over all of them.
# genalign: genalign/allocator.py sets both thresholds at the start of a command.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import ctypes
import platform
import resource

import torch

print("torch", torch.__version__, "on", " ".join(platform.libc_ver()))
torch.set_num_threads(1)
torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(192, 3, 768, batch_first=True, activation="gelu", norm_first=True)
model = torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).eval()
x = torch.randn(64, 89, 192)


def passes(count: int) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    with torch.no_grad():
        for _ in range(count):
            model(x)
    after = resource.getrusage(resource.RUSAGE_SELF)
    system, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
    return (after.ru_minflt - before.ru_minflt) / count, system / (system + user)


passes(3)
faults, system = passes(10)
print(f"a warm pass: {faults:.0f} page faults, {system:.0%} of the CPU time in the system")
libc = ctypes.CDLL(None)
libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD
libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
passes(3)
kept, system = passes(10)
print(f"freed memory kept: {kept:.0f} page faults, {system:.0%} of the CPU time in the system")

if not (faults > 5000 and kept < 100):
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
