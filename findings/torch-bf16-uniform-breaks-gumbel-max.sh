#!/usr/bin/env bash
# Gumbel-max sampling with torch.rand in bfloat16 draws the likeliest token nearly always.
#
# Expected: argmax(logits - log(-log(u))), u from torch.rand in the logits' dtype, draws a token with its
#   softmax probability, up to rounding.
# Seen: In bfloat16 u is never above 0.996 and is exactly 0 in 0.2% of draws, so the noise ends at 5.5: of 1,000
#   tokens, one with probability 0.5 is drawn in 98% of cases. In float32 it is 50%. F.gumbel_softmax in
#   bfloat16 is right.
# Versions: torch 2.13.0 and 2.14.1, CPU.
# Harm: Samplers of masked diffusion language models and VQ image models draw tokens in this way. In bfloat16
#   they sample at a much lower temperature than the log-probabilities of the policy gradient assume: entropy
#   collapses and the ratio is wrong, with log-probs that look healthy.
# genalign: Its language policy draws tokens by the inverse distribution function from float64 uniforms. A
#   pipeline's own token sampler would need float32 noise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import math

import torch

print("torch", torch.__version__)
torch.manual_seed(0)
logits = torch.zeros(1000)
logits[0] = math.log(999)  # probability one half
drawn = {}
for dtype in (torch.float32, torch.bfloat16):
    first = []
    for _ in range(5):
        uniform = torch.rand(2000, 1000, dtype=dtype)
        first.append((logits.to(dtype) - torch.log(-torch.log(uniform))).argmax(-1).eq(0).float().mean().item())
    drawn[dtype] = sum(first) / len(first)
    print(f"{dtype}: largest u {uniform.max().item():.6f}, zeros {uniform.eq(0).float().mean().item():.2e}, "
          f"token of probability 0.5 drawn {drawn[dtype]:.3f}")
hard = torch.nn.functional.gumbel_softmax(logits.bfloat16().expand(4000, 1000), hard=True)[:, 0].float().mean().item()
print(f"F.gumbel_softmax in bfloat16: {hard:.3f}")
still = abs(drawn[torch.float32] - 0.5) < 0.03 and drawn[torch.bfloat16] > 0.9 and abs(hard - 0.5) < 0.06

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
