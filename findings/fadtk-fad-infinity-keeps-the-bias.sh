#!/usr/bin/env bash
# fadtk's FAD-infinity is the distance of the finite set that it was given, with all of the bias of few samples.
#
# Expected: FAD grows as the samples become fewer; the intercept of FAD over 1/n is to be what ever more samples would
#   tend to (Chong and Forsyth, arXiv 1911.07023): 0, but for noise, of draws of the very law they are compared with.
# Seen: of 4096 draws of N(0, I) in 64 dims the plain distance is 0.27, and FAD-infinity 0.28. Its subsets are drawn
#   with replacement, so their limit is the set itself, as a law of its own, and not the law it was drawn from; without
#   replacement the same regression gives 0.00. The plain distances of fadtk and frechet-audio-distance are right here,
#   to 1e-4 of the closed form, with fewer samples than dims too.
# Versions: fadtk 1.1.0, frechet-audio-distance 0.3.4.
# Harm: The number that is reported because it does not depend on how many samples were drawn depends on it: a model of
#   which more was sampled looks better.
# genalign: measure frechet-infinity draws subsets without replacement; tests/reward/sets/test_frechet.py.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile numpy==1.26.4 scipy==1.13.1
"$work/venv/bin/pip" install --quiet --no-compile --no-deps fadtk==1.1.0 frechet-audio-distance==0.3.4
cd "$work"
"$work/venv/bin/python" - <<'PY'
# Both import encoders of several GB, of which nothing is asked here: their formulas are taken out of their files.
import ast
import importlib.metadata
import logging
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import linalg

SITE = Path(sysconfig.get_paths()["purelib"])


def taken(file, *names):
    found = {"np": np, "linalg": linalg, "scisqrt": np.emath.sqrt, "log": logging.getLogger(), "FADInfResults": SimpleNamespace}
    found["tq"] = lambda steps, desc: steps
    for node in ast.walk(ast.parse((SITE / file).read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.returns, node.decorator_list = None, []
            for argument in node.args.args:
                argument.annotation = None
            exec(compile(ast.Module([node], []), file, "exec"), found)
    return [found[name] for name in names]


for package in ("fadtk", "frechet-audio-distance"):
    print(package, importlib.metadata.version(package))
distance, _, score_inf = taken("fadtk/fad.py", "calc_frechet_distance", "calc_embd_statistics", "score_inf")
(other,) = taken("frechet_audio_distance/fad.py", "calculate_frechet_distance")
rng, right = np.random.default_rng(0), True


def moments(x):
    return x.mean(0), np.cov(x, rowvar=False)


for n, m, d in ((400, 600, 16), (2000, 3000, 128), (8, 600, 64), (40, 600, 128)):
    x, y = 1.2 * rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.1
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    closed = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum()
    closed -= 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()  # tr sqrt(A B) is a nuclear norm
    theirs = distance(*moments(x), *moments(y)), other(None, *moments(x), *moments(y))
    print(f"{n} rows, {d} dims: closed form {closed:.5f}, fadtk {theirs[0]:.5f}, frechet-audio-distance {theirs[1]:.5f}")
    right = right and max(abs(value - closed) for value in theirs) < 1e-4

np.random.seed(0)
rows, law = rng.normal(size=(4096, 64)), (np.zeros(64), np.eye(64))
plain = distance(*law, *moments(rows))
themselves = SimpleNamespace(ml=SimpleNamespace(name=""), load_stats=lambda _: law, _load_embeddings=lambda files, concat: rows)
limit = score_inf(themselves, "", [Path("a.wav")]).score
sizes = [int(n) for n in np.linspace(500, len(rows), 25)]
without = [distance(*law, *moments(rows[rng.permutation(len(rows))[:n]])) for n in sizes]
intercept = np.polyfit([1 / n for n in sizes], without, 1)[1]
print(f"of the law itself: FAD {plain:.3f}, fadtk's FAD-infinity {limit:.3f}, without replacement {intercept:.3f}")

if not (right and limit > 0.7 * plain and abs(intercept) < 0.3 * plain):
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
