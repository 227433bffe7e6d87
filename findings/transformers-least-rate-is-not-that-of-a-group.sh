#!/usr/bin/env bash
# transformers' least learning rate is another one in every parameter group, and not what was asked for.
#
# Expected: With min_lr=1e-5 (cosine_with_min_lr), or lr_end=1e-5 (polynomial), the rate falls to 1e-5 and no further.
# Seen: The least rate is divided by the optimizer's default rate, not by the group's, and each group's rate is multiplied
#   by that. AdamW with groups at 1e-4 and 1e-5, whose unused default is torch's 1e-3, ends at 1e-6 and 1e-7. It holds for
#   one group too, where the rate is named in the group. diffusers' polynomial schedule does the same.
# Versions: transformers 5.24.0, diffusers 0.42.1, torch 2.13.0.
# Harm: Groups with rates of their own are usual (LoRA+, adapters beside a text encoder, a critic beside a policy). The
#   last part of the training goes on at a tenth or a hundredth of the rate that the settings name.
# genalign: A schedule is a share that multiplies each group's rate, and ends at 0 or stays.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import diffusers
import torch
import transformers
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup as diffusers_polynomial
from transformers import get_polynomial_decay_schedule_with_warmup
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

print("torch", torch.__version__, "transformers", transformers.__version__, "diffusers", diffusers.__version__)


def last_rates(schedule, default=None, **least):
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 1e-4}, {"params": [weights[1]], "lr": 1e-5}]
    optimizer = torch.optim.AdamW(groups, **({} if default is None else {"lr": default}))
    scheduler = schedule(optimizer, num_warmup_steps=0, num_training_steps=10, **least)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    return [float(f"{rate:.2e}") for rate in scheduler.get_last_lr()]


found = {
    "cosine_with_min_lr": last_rates(get_cosine_with_min_lr_schedule_with_warmup, min_lr=1e-5),
    "polynomial": last_rates(get_polynomial_decay_schedule_with_warmup, lr_end=1e-5),
    "polynomial of diffusers": last_rates(diffusers_polynomial, lr_end=1e-5),
}
for name, rates in found.items():
    print(f"{name}: groups at 1e-4 and 1e-5, to fall to 1e-5, end at {rates}")
given = last_rates(get_cosine_with_min_lr_schedule_with_warmup, default=1e-4, min_lr=1e-5)
print("with the first group's rate as the optimizer's default too:", given)
still = all(rates == [1e-6, 1e-7] for rates in found.values()) and given == [1e-5, 1e-6]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
