#!/usr/bin/env bash
# A model with shift_tokens (x-transformers) learns a task wholly, and generate writes nonsense.
#
# Expected: generate at temperature 0 writes what the model thinks most probable, with its cache of keys and values
#   (as it is called plainly) as without.
# Seen: With shift_tokens=1 part of each state is the state of the token before, and with the cache there is no token
#   before: zeros stand there from the second written token on. A model that continues repeated patterns without an
#   error by cache_kv=False, and by its own forward, writes 10 to 20% of the tokens right. can_cache_kv says True. The
#   same model without shift_tokens is right both ways. Nothing is said.
# Versions: x-transformers 2.31.10, torch 2.14.1. data-dependent ALiBi (attn_data_dependent_alibi) differs too.
# Harm: A sound model is thought not to have learnt. In training by rewards the texts that are scored come from another
#   policy than the one whose log-probabilities are trained.
# genalign: It does not use it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 x-transformers==2.31.10 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

print("torch", torch.__version__, "x-transformers", version("x-transformers"))
torch.set_num_threads(1)


def patterns(count):
    """Rows of five different tokens of 16, repeated up to length 23."""
    return torch.rand(count, 16).argsort(1)[:, :5].repeat(1, 5)[:, :23]


right = {}
for shift in (0, 1):
    torch.manual_seed(0)
    layers = Decoder(dim=64, depth=2, heads=2, attn_dim_head=32, rotary_pos_emb=True, shift_tokens=shift)
    net = TransformerWrapper(num_tokens=16, max_seq_len=32, attn_layers=layers)
    model = AutoregressiveWrapper(net)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        model(patterns(48)).backward()
        optimizer.step()
    model.eval()
    rows = patterns(100)
    with torch.no_grad():
        taught = net(rows)[:, 7:-1].argmax(-1)
    right[shift, "by forward"] = (taught == rows[:, 8:]).float().mean().item()
    for name, options in {"by generate": {}, "by generate without cache": {"cache_kv": False}}.items():
        written = model.generate(rows[:, :8], 15, temperature=0.0, **options)
        right[shift, name] = (written == rows[:, 8:]).float().mean().item()
for (shift, name), share in right.items():
    print(f"shift_tokens={shift}, {name}: {share:.1%} of the tokens are right")
still = right.pop((1, "by generate")) < 0.4 and min(right.values()) > 0.97
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
