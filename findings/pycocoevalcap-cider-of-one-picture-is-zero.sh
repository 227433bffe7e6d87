#!/usr/bin/env bash
# CIDEr of a caption equal to its reference is 10 among several pictures and 0 of one picture.
#
# Expected: A score of a caption against its references: 10 for equal ones, whatever else is scored in the call.
# Seen: Words are weighed by how few of the call's pictures have them in their references. With one picture all have
#   weight log(1/1) = 0, and every caption scores 0, a perfect one too. Of several pictures with the same reference the
#   same; and of two that share half of it the shared half counts nothing. Nothing is said.
# Versions: pycocoevalcap 1.2, numpy 2.4.6.
# Harm: CIDEr is the usual reward of captioners. Computed sample by sample, or over the answers to one picture, it is 0
#   for all of them; over a batch it changes with the batch, so the same caption has another reward at every step.
# genalign: Ships no CIDEr; a reward sees the rows of one batch and must not depend on them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile numpy==2.4.6
"$work/venv/bin/pip" install --quiet --no-compile --no-deps pycocoevalcap==1.2
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from pycocoevalcap.cider.cider import Cider

print("pycocoevalcap", version("pycocoevalcap"))
DOG, CARS = "a dog runs over the wet grass", "two red cars wait in a street"
NEAR = "a dog runs over the dry sand"


def first(captions: list[str], references: list[str]) -> float:
    """The score of the first picture's caption."""
    scored = Cider().compute_score({i: [text] for i, text in enumerate(references)},
                                   {i: [text] for i, text in enumerate(captions)})
    return float(scored[1][0])


found = {
    "equal, one picture": first([DOG], [DOG]),
    "equal, beside another picture": first([DOG, CARS], [DOG, CARS]),
    "equal, four answers to one picture": first([DOG, CARS, NEAR, CARS], [DOG] * 4),
    "nearly equal, beside cars": first([NEAR, CARS], [DOG, CARS]),
    "nearly equal, beside its like": first([NEAR, DOG], [DOG, NEAR]),
}
for name, score in found.items():
    print(f"{name}: {score:.2f}")
still = [round(score, 2) for score in list(found.values())[:3]] == [0.0, 10.0, 0.0]
still &= found["nearly equal, beside cars"] > 3 > 0.5 > found["nearly equal, beside its like"]
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
