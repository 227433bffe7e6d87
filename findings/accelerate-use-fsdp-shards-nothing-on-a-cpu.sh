#!/usr/bin/env bash
# `accelerate launch --use_fsdp` on a machine without accelerator shards nothing, and does not say so.
#
# Expected: Two processes on the CPU, as torch's fully_shard allows there by gloo, each holding half of the parameters;
#   or an error that FSDP is not to be had.
# Seen: With ACCELERATE_USE_CPU=true, --use_fsdp (version 2) gives two processes of plain data parallelism: each holds
#   all parameters, and the plugin that was configured is gone. torch's
#   own fully_shard does shard in the same two processes.
# Versions: accelerate 1.15.0, torch 2.13.0.
# Harm: A run that is tried out on CPUs before it goes to a cluster proves nothing about sharding, and a test of memory
#   or checkpoints under FSDP passes without FSDP.
# genalign: refuses launcher settings that have no effect, in a sentence, before anything is loaded.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cd "$work"
cat > asked.py <<'PY'
import os

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import fully_shard

accelerator = Accelerator()
model = accelerator.prepare(nn.Linear(8, 8))
held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in model.parameters())
own = nn.Linear(8, 8)
fully_shard(own)
sharded = sum(p.to_local().numel() for p in own.parameters())
if accelerator.is_main_process:
    print(
        os.environ["ACCELERATE_USE_FSDP"], accelerator.distributed_type.name, accelerator.num_processes,
        type(model).__name__, held, sharded,
    )
accelerator.end_training()
PY
seen=$(ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 "$work/venv/bin/accelerate" launch --use_fsdp --fsdp_version 2 \
  --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 asked.py 2>/dev/null)
echo "asked for FSDP, kind of parallelism, processes, class, parameters held of 72, and by torch's fully_shard:"
echo "$seen"
if [ "$seen" != "true MULTI_CPU 2 DistributedDataParallel 72 36" ]; then
  echo "The behaviour has changed."
  exit 1
fi
echo "The behaviour is as recorded."
