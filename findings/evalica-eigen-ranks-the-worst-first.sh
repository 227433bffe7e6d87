#!/usr/bin/env bash
# evalica's eigenvector ranking is upside down: the model that loses most is first.
#
# Expected: evalica.eigen scores models by the main eigenvector of the matrix of wins, higher is better, as its six other
#   rankings do; a model that beats all others is first.
# Seen: Three models, each of which beats the next ones in 10 of 11 games: all other rankings put the best first, eigen the
#   worst, with 0.89 against 0.19, by its Rust solver and its Python one alike. Both multiply by the transposed matrix, so
#   a model takes its weight from those that beat it.
# Versions: evalica 0.4.2.
# Harm: It is the ranking library behind arenas of language models and image generators. Whoever adds eigen to a table of
#   rankings, or averages over them, promotes the checkpoint that people like least.
# genalign: Ranks by win rates and their intervals.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile evalica==0.4.2 numpy==2.4.6 pandas==3.1.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import evalica

print("evalica", version("evalica"))
PAIRS = [("best", "middle"), ("middle", "worst"), ("best", "worst")]
left = [pair[0] for pair in PAIRS for _ in range(11)]
right = [pair[1] for pair in PAIRS for _ in range(11)]
won = ([evalica.Winner.X] * 10 + [evalica.Winner.Y]) * 3

first = {}
for name in ("bradley_terry", "newman", "elo", "pagerank", "average_win_rate", "counting", "eigen"):
    scores = getattr(evalica, name)(left, right, won).scores
    first[name] = scores.index[0]
    print(name, {model: round(float(score), 3) for model, score in scores.items()})
first["eigen in Python"] = evalica.eigen(left, right, won, solver="naive").scores.index[0]
print(first)
still = all(model == ("worst" if name.startswith("eigen") else "best") for name, model in first.items())

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
