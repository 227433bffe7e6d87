#!/usr/bin/env bash
# rotary-embedding-torch counts positions in bfloat16: from 256 on tokens share theirs.
#
# Expected: 1024 tokens are turned by 1024 different angles. In bfloat16 the turned vectors may be rounded; positions
#   are whole numbers and the angles of a module in float32.
# Seen: Positions are counted in the dtype of the queries, and bfloat16 has 8 binary digits: 1024 tokens have 513 positions,
#   the last 512 of them 129. Under autocast it is the same, with all weights in float32. The angles are kept: a call
#   in float32 after one in bfloat16 gets the rounded ones too, so an evaluation in float32 is off by as much. So
#   do positions of x-transformers come out after model.bfloat16(). Nothing is said.
# Versions: rotary-embedding-torch 0.9.1, x-transformers 2.31.10, torch 2.14.1.
# Harm: From 512 on, four neighbouring tokens, patches or codes of a sound have no order among them. A network that
#   was trained in float32 is another one in bfloat16, and log-probabilities differ by what dtype was used first.
# genalign: It uses neither. Of its judges, rotary frequencies stay in float32.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 rotary-embedding-torch==0.9.1 x-transformers==2.31.10 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from rotary_embedding_torch import RotaryEmbedding
from x_transformers import Decoder

packages = "rotary-embedding-torch", "x-transformers"
print("torch", torch.__version__, *(f"{name} {version(name)}" for name in packages))
torch.set_num_threads(1)
tokens = torch.ones(1, 1, 1024, 32)
exact = RotaryEmbedding(32).rotate_queries_or_keys(tokens)


def positions(rotated, count=1024):
    """How many different rows the last `count` tokens have."""
    return len(rotated.reshape(1024, -1)[-count:].float().unique(dim=0))


rotary = RotaryEmbedding(32)
rounded = rotary.rotate_queries_or_keys(tokens.bfloat16())
after = rotary.rotate_queries_or_keys(tokens)
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    queries = torch.nn.Linear(32, 32)(tokens)
    mixed = RotaryEmbedding(32).rotate_queries_or_keys(queries)
layers = {}
for name in ("float32", "bfloat16"):
    layers[name] = Decoder(dim=64, depth=1, heads=2, rotary_pos_emb=True).rotary_pos_emb
layers["bfloat16"].bfloat16()
angles = {name: layer.forward_from_seq_len(1024)[0] for name, layer in layers.items()}
seen = {
    "float32": positions(exact), "bfloat16": positions(rounded), "bfloat16, the last 512": positions(rounded, 512),
    "autocast": positions(mixed), "float32 after bfloat16": positions(after),
    "x-transformers, float32": positions(angles["float32"]),
    "x-transformers, bfloat16": positions(angles["bfloat16"]),
}
for name, count in seen.items():
    print(f"{name}: {count} positions")
own = positions(exact.bfloat16())
off = (rounded.float() - exact).abs().max().item(), (after - exact).abs().max().item()
print(f"float32, rounded at the end: {own} positions; ones turned in bfloat16 are off by {off[0]:.2f},"
      f" in float32 afterwards by {off[1]:.2f}")
still = list(seen.values()) == [1024, 513, 129, 513, 513, 1024, 513] and own == 1024 and min(off) > 1
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
