#!/usr/bin/env bash
# accelerate launch --cpu --num_processes 2 starts one process.
#
# Expected: Two ranks, or a refusal.
# Seen: --num_processes is ignored with --cpu on one machine, and nothing says so. What does start two on a CPU is
#   --multi_gpu with ACCELERATE_USE_CPU=true.
# Versions: accelerate 1.15.0, torch 2.13.0, no configuration file.
# Harm: A test of several ranks without a GPU passes and has tested one; a run meant for two has half of the batch,
#   and its results are compared with those of two.
# genalign: Refuses to start where the launcher promised several processes and started one, with the command that
#   works (run/launcher.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cd "$work"
export HF_HOME="$work/home" OMP_NUM_THREADS=1
cat > ranks.py <<'PY'
import accelerate
import torch
from accelerate import Accelerator

ranks = Accelerator(cpu=True)
if ranks.is_main_process:
    print("torch", torch.__version__, "accelerate", accelerate.__version__, "processes", ranks.num_processes)
PY
launch() {
  "$work/venv/bin/accelerate" launch "$@" --num_processes 2 --num_machines 1 --mixed_precision no \
    --dynamo_backend no ranks.py 2>&1 | tee -a "$work/said"
}
echo "--cpu --num_processes 2:" && launch --cpu
echo "ACCELERATE_USE_CPU=true, --multi_gpu --num_processes 2:" && ACCELERATE_USE_CPU=true launch --multi_gpu

if [ "$(grep -o 'processes [0-9]*' "$work/said" | tr '\n' ' ')" != "processes 1 processes 2 " ]; then
  echo "The behaviour has changed."
  exit 1
fi
echo "The behaviour is as recorded."
