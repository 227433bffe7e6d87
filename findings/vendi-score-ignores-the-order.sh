#!/usr/bin/env bash
# vendi.score_X computes the Vendi score of order 1 whatever order is asked for.
#
# Expected: score_X(X, q) is the Vendi score of order q of the rows of X, the same as score_K(X @ X.T, q) and
#   score_dual(X, q).
# Seen: score_X passes q=1 on: orders 2 and infinity, and 0.1, all give the number of order 1. The two other functions
#   of the package take q.
# Versions: vendi-score 0.0.3.
# Harm: A table of diversity at several orders (small ones weigh rare samples, large ones common ones) has one number
#   several times, and order-2 scores cannot be compared with RKE values that others computed.
# genalign: reward/sets/vendi.py has its own formula; orders 1 and 2 are tested against closed forms.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile vendi-score==0.0.3 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

import numpy as np
from vendi_score import vendi

print("vendi-score", version("vendi-score"))
rows = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # eigenvalues 2/3 and 1/3
exact = {0.1: ((2 / 3) ** 0.1 + (1 / 3) ** 0.1) ** (1 / 0.9), 1: 3 / 2 ** (2 / 3), 2: 1.8, "inf": 1.5}
still = True
for order, right in exact.items():
    by_kernel, by_dual = vendi.score_K(rows @ rows.T, q=order), vendi.score_dual(rows, q=order)
    by_rows = vendi.score_X(rows, q=order)
    print(f"order {order}: exact {right:.4f}, score_K {by_kernel:.4f}, score_dual {by_dual:.4f}, score_X {by_rows:.4f}")
    still = still and abs(by_kernel - right) < 1e-9 and abs(by_dual - right) < 1e-9 and abs(by_rows - exact[1]) < 1e-9

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
