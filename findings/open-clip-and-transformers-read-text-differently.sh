#!/usr/bin/env bash
# open_clip and transformers turn the same prompt into different CLIP tokens.
#
# Expected: Both tokenizers have the same vocabulary and merges and say that they do what CLIP's tokenizer did,
#   so a prompt gives the same tokens.
# Seen: open_clip repairs text first (ftfy, HTML entities), transformers 5 no longer does: a typographic
#   apostrophe (don’t), an HTML entity (&amp;), full-width letters or a ligature give other tokens. Plain ASCII
#   text is the same.
# Versions: open_clip_torch 3.3.0, transformers 5.24.0, ftfy 6.3.1.
# Harm: Prompts that were scraped or written by people are full of these. One checkpoint scores them differently
#   in the two libraries, and the text encoder of the pipeline (transformers) sees other words than the CLIP
#   reward (open_clip).
# genalign: Its CLIP rewards read text with open_clip's tokenizer, pipelines with their own. The reader of
#   prompt files could warn of such characters once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 open_clip_torch==3.3.0 transformers==5.24.0 ftfy==6.3.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import gzip

import open_clip
import transformers
from open_clip.tokenizer import SimpleTokenizer, default_bpe

print("open_clip", open_clip.__version__, "transformers", transformers.__version__)
ours = SimpleTokenizer()
merges = gzip.open(default_bpe()).read().decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
theirs = transformers.CLIPTokenizer(vocab=ours.encoder, merges=[tuple(merge.split()) for merge in merges])
same = {}
for text in ("a cat, 2 dogs!", "it's red", "don\u2019t", "salt &amp; pepper", "\uff21\uff22", "\ufb01ne art"):
    a, b = ours.encode(text), theirs(text, add_special_tokens=False).input_ids
    same[text] = a == b
    print(f"{text!r}: open_clip {a}, transformers {b}")
still = list(same.values()) == [True, True, False, False, False, False]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
