#!/usr/bin/env bash
# By torchdiffeq's odeint_adjoint the network that makes a field's condition is not trained.
#
# Expected: odeint_adjoint gives the gradients of odeint in less memory, for all that the result depends on.
# Seen: Parameters of the field itself have theirs. A tensor that the field holds or closes over, such as an encoded
#   prompt, has none, and neither has the encoder before it: its gradient is None, where by odeint it is trained.
#   Neither the forward pass nor backward says a word. The way out is to name the tensor in adjoint_params, beside all
#   parameters; if the encoder is a submodule of the field, that gives it twice its gradient, as it has the right one
#   already.
# Versions: torchdiffeq 0.2.5, torch 2.14.1.
# Harm: One changes odeint to odeint_adjoint to save memory, the field learns on, and the prompt encoder or its LoRA
#   stays as it was initialised. A reward's gradient by the condition, for prompt optimisation, is missing.
# genalign: Takes gradients through its own steps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchdiffeq==0.2.5 numpy==2.4.6 scipy==1.17.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torchdiffeq import odeint, odeint_adjoint

print("torch", torch.__version__, "torchdiffeq", version("torchdiffeq"))
torch.set_num_threads(1)


class Field(torch.nn.Module):
    """A velocity of rows, under a condition that is encoded once before solving."""

    def __init__(self, encoder=None):
        super().__init__()
        self.velocity = torch.nn.Linear(4, 2)
        self.encoder = encoder
        self.condition = None

    def forward(self, time, rows):
        return torch.tanh(self.velocity(torch.cat([rows, self.condition.expand(len(rows), 2)], -1)))


times = torch.tensor([0.0, 1.0])
norms = {}
for place in ("apart", "within the field"):
    for way in ("odeint", "odeint_adjoint", "odeint_adjoint, named"):
        torch.manual_seed(0)
        encoder = torch.nn.Linear(3, 2)
        field = Field(None if place == "apart" else encoder)
        field.condition = encoder(torch.ones(3))
        options = {"adjoint_params": (*field.parameters(), field.condition)} if "named" in way else {}
        solve = odeint if way == "odeint" else odeint_adjoint
        solve(field, torch.ones(5, 2), times, **options)[-1].sum().backward()
        grads = field.velocity.weight.grad, encoder.weight.grad
        norms[place, way] = [None if grad is None else round(grad.norm().item(), 3) for grad in grads]
        print(f"encoder {place}, {way}: gradient of the velocity {norms[place, way][0]}, of the encoder"
              f" {norms[place, way][1]}")
plain = norms["apart", "odeint"]
still = min(plain) > 0.1 and norms["apart", "odeint_adjoint"] == [plain[0], None]
still = still and all(norms[place, way] == plain for place, way in (
    ("apart", "odeint_adjoint, named"), ("within the field", "odeint"), ("within the field", "odeint_adjoint")))
twice = norms["within the field", "odeint_adjoint, named"]
still = still and abs(twice[1] - 2 * plain[1]) < 0.01 and twice[0] == plain[0]
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
