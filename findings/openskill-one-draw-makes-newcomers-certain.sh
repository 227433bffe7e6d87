#!/usr/bin/env bash
# After one draw among six newcomers openskill's Thurstone-Mosteller model is sure of all of them, for good.
#
# Expected: A draw among players of whom nothing is known says little: their mean stays, their uncertainty falls a bit.
# Seen: sigma falls from 8.33 to 0.083, the model's floor: each pair takes its share of the variance as if it were
#   independent of the others, the shares add up to more than all of it, and the remainder is clipped at 1e-4. A player who
#   then wins 20 games in a row against an established player of mean 35 moves up by 0.6, and by more
#   than 20 in the Bradley-Terry and Plackett-Luce models, which keep 6.9 and 8.3. A draw of two leaves 7.20.
# Versions: openskill 6.2.0.
# Harm: Votes with "all are alike" are common among samples of one prompt. One such vote freezes the ratings of all
#   checkpoints in it, and the leaderboard no longer learns from later votes.
# genalign: Compares two at a time; equal ones of a ranking count as ties of pairs.
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
after = {}
for name in ("PlackettLuce", "BradleyTerryFull", "ThurstoneMostellerFull"):
    model = getattr(models, name)()
    two, six = (model.rate([[model.rating()] for _ in range(n)], ranks=[1] * n)[0][0] for n in (2, 6))
    player, rival = six, model.rating(mu=35, sigma=1)
    for _ in range(20):
        (player,), _ = model.rate([[player], [rival]])
    after[name] = six.sigma, player.mu - six.mu
    print(f"{name}: sigma 8.333, after a draw of two {two.sigma:.3f}, of six {six.sigma:.3f};"
          f" 20 wins then move its mean by {player.mu - six.mu:.2f}")
sigma, moved = after.pop("ThurstoneMostellerFull")
still = sigma < 0.1 and moved < 1 and all(s > 6 and m > 20 for s, m in after.values())

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
