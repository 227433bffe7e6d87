#!/usr/bin/env bash
# torchcfm's optimal transport trains on 162 of 256 samples of a batch, some of them five times, by numpy's seed.
#
# Expected: The plan between two batches of one size is a pairing: each sample has just one partner, and the training
#   step sees these pairs. torch.manual_seed fixes a run, as in a library of torch.
# Seen: As many pairs as the batch has are drawn from the plan with replacement. Of 256 samples 1 - 1/e are used, about
#   162, and one of them up to five times; the others are dropped. The drawing is by numpy's global generator: after
#   the same torch.manual_seed the pairs are others each time. sample_plan(replace=False) gives all pairs, but the
#   matcher that training calls has no such argument.
# Versions: torchcfm 1.0.7, POT 0.9.7.post1, torch 2.13.0.
# Harm: An epoch leaves out a third of the data, the gradient of a batch of 256 has the noise of one of 128, and a run
#   that was seeded does not repeat.
# genalign: Draws each sample's noise by itself and pairs none.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 POT==0.9.7.post1
"$work/venv/bin/pip" install --quiet --no-compile --no-deps torchcfm==1.0.7
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torchcfm.conditional_flow_matching import ExactOptimalTransportConditionalFlowMatcher

print("torch", torch.__version__, "torchcfm", version("torchcfm"))
torch.manual_seed(0)
noise, data = torch.randn(256, 2), torch.randn(256, 2)
names = torch.arange(256)
matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
plan = matcher.ot_sampler.get_map(noise, data) > 0
pairing = bool((plan.sum(0) == 1).all() and (plan.sum(1) == 1).all())
print("the plan is a pairing:", pairing)
used, drawn = [], []
for _ in range(5):
    torch.manual_seed(0)
    *_, labels = matcher.guided_sample_location_and_conditional_flow(noise, data, y1=names)
    counts = torch.bincount(labels, minlength=256)
    used.append(int((counts > 0).sum()))
    drawn.append(labels.tolist())
    print(f"after torch.manual_seed(0): {used[-1]} of 256 samples used, one of them {int(counts.max())} times")
still = pairing and all(140 < count < 185 for count in used) and all(drawn[0] != other for other in drawn[1:])
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
