#!/usr/bin/env bash
# Whisper's text normaliser removes the vowels of Hindi: "day" and "donation" have a word error rate of 0.
#
# Expected: The normaliser for languages other than English makes spelling even (case, punctuation) before the word error
#   rate; other words stay other words.
# Seen: It replaces all characters of Unicode's classes M, S and P by a space. The vowel signs of Hindi, Bengali, Tamil and
#   Thai are of class M: the Hindi words for day (din), donation (dan), and poor (deen) all become "d n", which also count
#   as two words. Letters with their own accent (French, Vietnamese) are composed first and stay.
# Versions: whisper-normalizer 0.1.15 (OpenAI's code as a package; transformers carries the same), jiwer 4.0.0.
# Harm: It is the usual normaliser before the error rate of recognised speech. A reward or an evaluation of speech in
#   these languages, which hundreds of millions speak, cannot see wrong vowels.
# genalign: Has no error rate of speech.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile whisper-normalizer==0.1.15 jiwer==4.0.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import jiwer
from whisper_normalizer.basic import BasicTextNormalizer

print("whisper-normalizer", version("whisper-normalizer"), "jiwer", version("jiwer"))
normalize = BasicTextNormalizer()
RIGHT_AND_HEARD = {
    "Hindi": ("\u0926\u093f\u0928", "\u0926\u093e\u0928"),  # din (day), dan (donation)
    "Bengali": ("\u09a6\u09bf\u09a8", "\u09a6\u09be\u09a8"),  # the same two words
    "Tamil": ("\u0b95\u0b9f\u0bbf", "\u0b95\u0b9f\u0bc1"),  # kadi (bite), kadu (a syllable of "hard")
    "French": ("p\u00eache", "p\u00e9ch\u00e9"),
}
rates = {}
for language, (right, heard) in RIGHT_AND_HEARD.items():
    rates[language] = jiwer.wer(normalize(right), normalize(heard))
    print(f"{language}: {right} and {heard} become {normalize(right)!r} and {normalize(heard)!r}: error rate {rates[language]},"
          f" without normalising {jiwer.wer(right, heard)}")
still = rates == {"Hindi": 0.0, "Bengali": 0.0, "Tamil": 0.0, "French": 1.0}

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
