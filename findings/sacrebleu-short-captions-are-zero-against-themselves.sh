#!/usr/bin/env bash
# sacrebleu gives a corpus of captions of three words BLEU 0 against itself.
#
# Expected: A corpus against itself has BLEU 100, or is refused; sentence_bleu gives each of its captions 100.
# Seen: corpus_bleu is 0 if no caption has four words, and the smoothing that is on does not help, as it is for orders
#   without a match, and not for orders without any n-gram. One caption of four words among a hundred of three makes it
#   100. The signature that is to make values comparable says nothing of it.
# Versions: sacrebleu 2.6.0.
# Harm: Captions, tags, transcripts of commands and short answers have no four words; a run's BLEU stays 0 however well
#   it learns, or rests on the few longer texts alone.
# genalign: Has no BLEU.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile sacrebleu==2.6.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from sacrebleu.metrics import BLEU

print("sacrebleu", version("sacrebleu"))
metric = BLEU()
short = ["a red cube", "two blue spheres", "one green cone"]
corpus = metric.corpus_score(short, [short]).score
longer = metric.corpus_score([*short, "a cat on mats"], [[*short, "a cat on mats"]]).score
single = BLEU(effective_order=True).sentence_score(short[0], [short[0]]).score
print(f"three captions of three words against themselves: {corpus}; with one of four words: {longer:.0f};"
      f" the first alone by sentence: {single:.0f}")
print(metric.get_signature())
still = corpus == 0 and abs(longer - 100) < 1e-6 and abs(single - 100) < 1e-6

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
