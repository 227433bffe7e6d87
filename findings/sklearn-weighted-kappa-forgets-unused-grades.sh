#!/usr/bin/env bash
# scikit-learn's weighted kappa goes by the position of a grade among those that occur, not by the grade.
#
# Expected: With weights="quadratic" a 5 against a 2 is nine times as bad as a 5 against a 4, whatever other grades
#   occur.
# Seen: Grades that nobody gave vanish from the scale: among 1, 2 and 5 the distance from 2 to 5 is 1. Two raters of a
#   scale from 1 to 5 who never used 3 and 4 agree to 0.77 where it is 0.95. Grades 1, 2, 100 and 1, 2, 3 give one
#   number. With labels=[1, 2, 3, 4, 5] it is right.
# Versions: scikit-learn 1.9.1, numpy 2.4.6.
# Harm: The usual measure of a judge against people, on scales of 5 or 10 of which few grades are in use: kappas of two
#   judges are on two scales, and the one that uses more grades is judged by another rule.
# genalign: Has no kappa; agreement is by pairs and ranks.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile scikit-learn==1.9.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import sklearn
from sklearn.metrics import cohen_kappa_score

print("scikit-learn", sklearn.__version__)
people = [1, 1, 2, 2, 5, 5, 1, 5, 2, 1]
judge = [1, 2, 2, 1, 5, 5, 2, 5, 2, 1]
found = cohen_kappa_score(people, judge, weights="quadratic")
scale = cohen_kappa_score(people, judge, weights="quadratic", labels=[1, 2, 3, 4, 5])
expected = sum((p - j) ** 2 for p in people for j in judge) / len(people) ** 2
right = 1 - sum((p - j) ** 2 for p, j in zip(people, judge, strict=True)) / len(people) / expected
print(f"grades 1, 2, 5: {found:.4f}; with the labels 1 to 5: {scale:.4f}; by the formula: {right:.4f}")
far = cohen_kappa_score([1, 2, 100, 1], [1, 100, 100, 2], weights="quadratic")
near = cohen_kappa_score([1, 2, 3, 1], [1, 3, 3, 2], weights="quadratic")
print(f"grades 1, 2, 100: {far:.4f}; grades 1, 2, 3 in their places: {near:.4f}")
still = abs(found - 0.7692) < 1e-3 and abs(scale - right) < 1e-9 and abs(scale - 0.9455) < 1e-3 and far == near

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
