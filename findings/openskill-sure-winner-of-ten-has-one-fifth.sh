#!/usr/bin/env bash
# openskill gives a player who is certain to win against nine others a probability of 0.2.
#
# Expected: predict_win says how likely each of several players is to be first. Somebody who beats each of nine others with
#   probability 1 - 6e-12 is first with a probability of nearly 1.
# Seen: 0.2; against two others 0.67. The probabilities of all pairs are added and divided by the number of pairs, so that
#   nobody among n can have more than 2/n, and what remains is shared by those who cannot win. For two players it is right.
# Versions: openskill 6.2.0, all five of its models.
# Harm: Arenas that show four or more samples at once, and tournaments among checkpoints, read from it that the best model
#   is hardly better than chance, stop too late, and weigh an expected win as a surprise.
# genalign: Compares two at a time, and reports win rates with exact intervals.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile openskill==6.2.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from openskill import models

print("openskill", version("openskill"))
still = True
for name in ("PlackettLuce", "BradleyTerryFull", "BradleyTerryPart", "ThurstoneMostellerFull", "ThurstoneMostellerPart"):
    model = getattr(models, name)()
    best = [model.rating(mu=50, sigma=0.1)]
    others = [[model.rating(mu=10, sigma=0.1)] for _ in range(9)]
    found = [model.predict_win([best, *others[:n]])[0] for n in (1, 2, 3, 9)]
    print(name, "against 1, 2, 3 and 9:", [round(p, 4) for p in found])
    still = still and all(abs(p - 2 / n) < 1e-6 for p, n in zip(found, (2, 3, 4, 10), strict=True))

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
