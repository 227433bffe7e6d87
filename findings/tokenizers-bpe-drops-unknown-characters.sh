#!/usr/bin/env bash
# A BPE tokenizer without an unknown token drops each character that it did not see in training; other models refuse.
#
# Expected: An error, as WordLevel, WordPiece and Unigram of the same package give without an unknown token.
# Seen: tokenizers' BPE leaves the character out of the text without a word. Trained on captions without figures, "12
#   red cubes" has the tokens of "red cubes", "2 + 3" has none at all, and RED is dropped because all was written
#   small. With unk_token each of them is one unknown token.
# Versions: tokenizers 0.23.3.
# Harm: A tokenizer for captions, molecules, music or code is trained on a part of the data, and unk_token is optional.
#   Later prompts lose their numbers and names, and the model is scored against a prompt that it never saw.
# genalign: Its own BPE has all 256 bytes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile tokenizers==0.23.3
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

print("tokenizers", version("tokenizers"))
CAPTIONS = ["a red ball and two blue cubes on a table, all lit from above"] * 5


def trained(model: models.Model, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return tokenizer


def bpe(**unknown: str) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=list(unknown.values()), show_progress=False)
    return trained(models.BPE(**unknown), trainer)


silent, told = bpe(), bpe(unk_token="[UNK]")
found = {}
for prompt in ("red cubes", "12 red cubes", "RED cubes", "2 + 3"):
    found[prompt] = silent.encode(prompt).tokens
    print(f"{prompt}: {found[prompt]}; with an unknown token {told.encode(prompt).tokens}")
refused = []
for model, trainer in (
    (models.WordLevel(), trainers.WordLevelTrainer(show_progress=False)),
    (models.WordPiece(), trainers.WordPieceTrainer(vocab_size=200, show_progress=False)),
    (models.Unigram(), trainers.UnigramTrainer(vocab_size=40, show_progress=False)),
):
    try:
        print(type(model).__name__, trained(model, trainer).encode("12 red cubes").tokens)
    except Exception as error:
        refused.append(type(model).__name__)
        print(f"{refused[-1]}: {error}")
still = found["12 red cubes"] == found["red cubes"] == ["red", "cubes"] and found["2 + 3"] == [] and len(refused) == 3
still &= found["RED cubes"] == ["cubes"] and "[UNK]" in told.encode("12 red cubes").tokens
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
