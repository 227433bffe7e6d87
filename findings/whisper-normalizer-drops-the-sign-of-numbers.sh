#!/usr/bin/env bash
# Whisper's English normaliser takes -5 for 5, and a thirty second clip for the 32nd clip.
#
# Expected: It "normalises numbers" so that the same number spoken or written is equal, and other numbers are not.
# Seen: A minus sign of a digit is dropped with the punctuation, while "minus five" becomes "-5": so "-5 degrees" is equal
#   to "5 degrees", and not to "minus five degrees". "thirty second" is always the ordinal 32nd.
# Versions: whisper-normalizer 0.1.15 (OpenAI's code as a package; transformers carries the same), jiwer 4.0.0.
# Harm: Speech that says the opposite temperature has a word error rate of 0, and speech that says the right one does not:
#   rewards for speech synthesis that are error rates of what was recognised push the wrong way.
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
from whisper_normalizer.english import EnglishTextNormalizer

print("whisper-normalizer", version("whisper-normalizer"), "jiwer", version("jiwer"))
normalize = EnglishTextNormalizer()
PAIRS = [
    ("it is -5 degrees", "it is 5 degrees"),
    ("a thirty second clip", "a 32nd clip"),
    ("it is -5 degrees", "it is minus five degrees"),
    ("2.5 hours", "two and a half hours"),
]
rates = []
for right, heard in PAIRS:
    rates.append(jiwer.wer(normalize(right), normalize(heard)))
    print(f"{right!r} -> {normalize(right)!r}; {heard!r} -> {normalize(heard)!r}: error rate {rates[-1]:.2f}")
still = [rate == 0 for rate in rates] == [True, True, False, True]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
