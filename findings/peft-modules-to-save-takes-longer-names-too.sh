#!/usr/bin/env bash
# peft's modules_to_save=["head"] also copies and trains a module named "subhead".
#
# Expected: modules_to_save names modules, by whole parts of their path as target_modules does: there "head" is no
#   "subhead".
# Seen: Every module whose path ends with these letters is meant: "subhead" is copied, trained in full and saved with the
#   adapter, and "proj" takes "q_proj" and "up_proj" of all layers that have no LoRA. Nothing is said but by the number of
#   trainable parameters.
# Versions: peft 0.21.2, torch 2.14.1.
# Harm: "out", "norm" or "head" for one module unfreezes others all over the network: the policy moves far from its
#   base by weights that were meant to be frozen, and the file of a small adapter holds full matrices.
# genalign: It saves no whole modules beside a LoRA.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy==2.4.6 peft==0.21.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model

print("torch", torch.__version__, "peft", peft.__version__)


def network():
    """A body, a head, and modules whose names end like them."""
    return torch.nn.ModuleDict({
        "body": torch.nn.Linear(8, 8), "subhead": torch.nn.Linear(8, 4), "head": torch.nn.Linear(8, 2),
        "q_proj": torch.nn.Linear(8, 8), "proj": torch.nn.Linear(8, 8),
    })  # fmt: skip


def trained(**options):
    """Which modules have trained weights."""
    names = [name for name, weight in get_peft_model(network(), LoraConfig(r=2, **options)).named_parameters()
             if weight.requires_grad]
    return sorted({name.removeprefix("base_model.model.").split(".")[0] for name in names})


seen = {
    "LoRA on body, head": trained(target_modules=["body", "head"]),
    "LoRA on body, head saved": trained(target_modules=["body"], modules_to_save=["head"]),
    "LoRA on body, proj saved": trained(target_modules=["body"], modules_to_save=["proj"]),
}
for name, modules in seen.items():
    print(f"{name}: trains {', '.join(modules)}")
still = list(seen.values()) == [["body", "head"], ["body", "head", "subhead"], ["body", "proj", "q_proj"]]
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
