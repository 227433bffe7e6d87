#!/usr/bin/env bash
# trueskill with a draw probability of 0 becomes less certain by every draw of equals.
#
# Expected: A game is evidence: sigma shrinks. With a small draw probability (1e-6) it does, from 8.33 to 6.30 by a
#   draw of two newcomers and to 2.1 by ten. Or an error, as no draws are foreseen.
# Seen: With draw_probability=0 the same draw raises sigma to 9.59, and ten of them to 20.6. The margin of a draw is
#   then smaller than the error of the library's normal distribution, and a factor that should be 1 is -0.997. Players
#   of 30 and 20 are rated right. Nothing is said.
# Versions: trueskill 0.4.5.
# Harm: Judges of generated samples are thought to never tie, so the probability is set to 0, and then both answers are
#   the same text. Newcomers, who are all equal, get the less certain the more they are compared, and one later game
#   moves them far.
# genalign: Its win rates count a tie as half.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile trueskill==0.4.5
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from trueskill import TrueSkill

print("trueskill", version("trueskill"))
sigma = {}
for probability in (0.1, 1e-6, 0.0):
    game = TrueSkill(draw_probability=probability)
    one, other = game.create_rating(), game.create_rating()
    sigma[probability] = []
    for _ in range(10):
        one, other = game.rate_1vs1(one, other, drawn=True)
        sigma[probability].append(one.sigma)
    apart = game.rate_1vs1(game.create_rating(30, 3), game.create_rating(20, 3), drawn=True)
    print(f"draw probability {probability}: from sigma 8.333 by a draw to {sigma[probability][0]:.3f}, by ten to "
          f"{sigma[probability][9]:.3f}; 30 against 20: {apart[0].mu:.2f} and {apart[1].mu:.2f}")
shrinks = all(sigma[probability][9] < 2.3 for probability in (0.1, 1e-6))
still = shrinks and sigma[0.0][0] > 9.5 and sigma[0.0][9] > 20
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
