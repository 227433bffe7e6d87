#!/usr/bin/env bash
# Categorical(probs) gives improbable tokens another log-probability: none is below that of the type's smallest step.
#
# Expected: Categorical(probs=p).log_prob(k) is log p[k]; in bfloat16 too, which holds a probability of 1e-10 to three
#   digits.
# Seen: Probabilities are clamped to [eps, 1 - eps] before the logarithm. In float32 a token of probability 1e-10 has
#   -15.94, not -23.03, and one of probability 0 has -15.94 too, not -inf. In bfloat16 eps is 0.0078, so of 1000 tokens
#   nearly all have exactly -4.84: a ratio between two policies is 1, and its gradient 0. Categorical(logits=) is right.
# Versions: torch 2.13.0.
# Harm: A policy-gradient loss that goes by probabilities (after a mask or a temperature, say) has a wrong ratio and no
#   gradient for just the tokens that matter, and an entropy of its own; in bfloat16 for a whole vocabulary.
# genalign: Takes log-probabilities from log_softmax of logits, never from probabilities.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import torch
from torch.distributions import Categorical

print("torch", torch.__version__)
small = Categorical(probs=torch.tensor([1e-10, 0.0, 1 - 1e-10]))
low, none = small.log_prob(torch.tensor([0, 1])).tolist()
print(f"float32: log p of 1e-10 is {low:.2f} (right: -23.03), of 0 {none:.2f} (right: -inf)")
still = abs(low + 15.94) < 0.01 and low == none

logits = torch.randn(1000, generator=torch.Generator().manual_seed(0))
tokens = torch.arange(1000)
right = logits.log_softmax(0)
print(f"right: from {right.min():.2f} to {right.max():.2f}")
for name, given in (("probs", {"probs": right.exp().bfloat16()}), ("logits", {"logits": logits.bfloat16()})):
    found = Categorical(**given).log_prob(tokens).float()
    floor = int((found == found.min()).sum())
    print(f"bfloat16, {name}: from {found.min():.2f} to {found.max():.2f}; {floor} of 1000 tokens share the lowest")
    still &= floor > 900 if name == "probs" else floor < 10 and float((found - right).abs().max()) < 0.1

policy = right.exp().bfloat16().requires_grad_()
Categorical(probs=policy).log_prob(torch.tensor(int(right.argmin()))).backward()
share = float(policy.grad[int(right.argmin())] * policy[int(right.argmin())])
print(f"the gradient of log p to its own p, times p, is {share:.3f} for the rarest token (right: 1 - p)")
still &= share <= 0.01

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
