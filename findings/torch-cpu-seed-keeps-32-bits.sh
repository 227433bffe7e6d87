#!/usr/bin/env bash
# A CPU generator of torch uses only the lower 32 bits of its seed.
#
# Expected: torch.Generator().manual_seed takes 64-bit seeds, so two different 64-bit seeds give two different
#   streams of noise.
# Seen: Seeds that agree in their lower 32 bits give the same noise, to the bit. initial_seed() still returns
#   all 64 bits.
# Versions: torch 2.13.0 and 2.14.1, CPU.
# Harm: Seeds put together as (run << 32) + index, or with the prompt in the upper half, repeat the same noise
#   in each run or for each prompt. Seeds from a 64-bit hash meet after about 77,000 samples (probability one
#   half), not after billions.
# genalign: Its sample seeds are 63 bits of a SHA-256, of which the CPU generator sees 32; with a shared start
#   the lower 16 are cleared too, so only 65,536 starts exist. See the list in README.md.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch

print("torch", torch.__version__)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(4, generator=torch.Generator().manual_seed(seed))


for seed in (7, 7 + 2**31, 7 + 2**32, 7 + 5 * 2**40):
    print(f"seed {seed:>16}:", [round(x, 4) for x in noise(seed).tolist()])
still = (
    torch.equal(noise(7), noise(7 + 2**32))
    and torch.equal(noise(7), noise(7 + 5 * 2**40))
    and not torch.equal(noise(7), noise(7 + 2**31))
    and torch.Generator().manual_seed(7 + 2**32).initial_seed() == 7 + 2**32
)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
