#!/usr/bin/env bash
# A run that accelerate resumes within an epoch trains on some samples twice and on others never.
#
# Expected: After load_state, skip_first_batches(loader, n) yields the batches that were still to come when save_state
#   wrote the checkpoint after n batches, as accelerate's guide to checkpoints does it.
# Seen: With shuffle=True it yields n batches' rest of another order: save_state wrote the generators as they are within
#   the epoch, the epoch's order was drawn before, and the new loader draws a new one. Of 12 samples some come twice in
#   the epoch and as many not at all. With use_seedable_sampler it is the order of the first epoch, unless one
#   also calls loader.set_epoch; then it is right. Losses and the count of steps show nothing.
# Versions: accelerate 1.15.0, torch 2.13.0.
# Harm: On preemptible machines a run is resumed many times: what an epoch holds is a draw with replacement, rare prompts
#   drop out, and a resumed run is not the run.
# genalign: Which prompts a step takes is a function of seed and step; a resumed run is the same run to the last bit.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader, TensorDataset

print("torch", torch.__version__, "accelerate", accelerate.__version__)
EPOCH, DONE = 1, 3


def started(seedable):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable))
    set_seed(7)
    loader = DataLoader(TensorDataset(torch.arange(12)), batch_size=2, shuffle=True)
    return accelerator, *accelerator.prepare(torch.nn.Linear(1, 1), loader)


def rest_of_epoch(seedable, call_set_epoch=False):
    accelerator, _, loader = started(seedable)
    seen = []
    for epoch in range(EPOCH + 1):
        for number, (batch,) in enumerate(loader):
            if epoch == EPOCH:
                seen += [batch.tolist()]
                if number + 1 == DONE:
                    accelerator.save_state(f"state-{seedable}")
    accelerator, _, loader = started(seedable)
    accelerator.load_state(f"state-{seedable}")
    if call_set_epoch:
        loader.set_epoch(EPOCH)
    rest = [batch.tolist() for (batch,) in accelerator.skip_first_batches(loader, DONE)]
    trained = sorted(sum(seen[:DONE] + rest, []))
    twice = sorted({n for n in trained if trained.count(n) > 1})
    print(f"seedable sampler {seedable}, set_epoch {call_set_epoch}: before {seen[:DONE]}, to come {seen[DONE:]},"
          f" came {rest}; twice {twice}, never {sorted(set(range(12)) - set(trained))}")
    return len(twice)


plain, seeded, right = rest_of_epoch(False), rest_of_epoch(True), rest_of_epoch(True, call_set_epoch=True)
still = plain > 0 and seeded > 0 and right == 0

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
