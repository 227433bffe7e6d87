#!/usr/bin/env bash
# openskill counts a player of weight 0 in full, and every player alone in a team twice.
#
# Expected: rate(..., weights=) moves a rating in proportion to its player's weight: weight 0 not at all, and weights
#   that are all 1 as no weights.
# Seen: The weights of each team are stretched to the range 1 to 2 by themselves. Weight 0 moves as much as without
#   weights; 0.99 beside 1 is the same as 0 beside 1; and a team of one has weight 2 whatever is given: the winner
#   moves twice as far, the loser half as far, so that the two gain together. weight_bounds of (0, 1) only makes these
#   lone players' weight 1.
# Versions: openskill 6.2.0, PlackettLuce, BradleyTerryFull and ThurstoneMostellerPart alike.
# Harm: Duels of models or prompts, weighted by a judge's confidence, are all weighted alike: a verdict of confidence 0
#   counts as one of confidence 1, and every rating drifts upwards, most for who duels most.
# genalign: It weighs no duels; its win rates are means.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile openskill==6.2.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from openskill.models import BradleyTerryFull, PlackettLuce, ThurstoneMostellerPart

print("openskill", version("openskill"))


def moves(model, players, weights):
    """How far the ratings of two equal teams move when the first wins."""
    teams = [[model.rating() for _ in range(players)] for _ in range(2)]
    return [[round(one.mu - 25, 3) for one in team] for team in model.rate(teams, weights=weights)]


still = True
for model in (PlackettLuce(), BradleyTerryFull(), ThurstoneMostellerPart()):
    duels = {str(weights): moves(model, 1, weights) for weights in (None, [[1], [1]], [[0], [0]], [[0], [1]])}
    pairs = {
        str(weights): moves(model, 2, weights)
        for weights in (None, [[0, 1], [1, 1]], [[0.99, 1], [1, 1]], [[1, 1], [1, 1]])
    }
    print(type(model).__name__)
    for weights, result in [*duels.items(), *pairs.items()]:
        print(f"  weights {weights}: {result}")
    (won,), (lost,) = duels["None"]
    (twice,), (half,) = duels["[[1], [1]]"]
    alike = duels["[[1], [1]]"] == duels["[[0], [0]]"] == duels["[[0], [1]]"]
    drift = abs(twice - 2 * won) < 0.002 and abs(half - lost / 2) < 0.002
    zero = pairs["[[0, 1], [1, 1]]"][0]
    in_full = zero[0] == pairs["None"][0][0] and abs(zero[1] - 2 * zero[0]) < 0.002
    still = still and alike and drift and in_full and pairs["[[0, 1], [1, 1]]"] == pairs["[[0.99, 1], [1, 1]]"]
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
