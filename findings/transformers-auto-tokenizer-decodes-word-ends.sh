#!/usr/bin/env bash
# AutoTokenizer reads the same tokenizer as another class where a model's config.json lies beside it, and decodes otherwise.
#
# Expected: tokenizer_config.json names CLIPTokenizer, so AutoTokenizer and AutoProcessor give a CLIPTokenizer, in the
#   folder of a Llava model as in a folder of its own, and its texts come back as they were.
# Seen: Beside a config.json of a Llava model it is a TokenizersBackend. The ids are the same, but ends of words are no
#   spaces to it: "left of the red cat" comes back as "left</w>of</w>the</w>red</w>cat</w>". Neither saving nor loading
#   says so.
# Versions: transformers 5.24.0, tokenizers 0.23.1.
# Harm: A vision-language model's answers reach rewards and judges without spaces: rules that look for words find none,
#   and the model is trained towards whatever scores best in that state.
# genalign: tiny-vlm's tokenizer.json has a decoder of its own, and a test compares its texts.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile transformers==5.24.0 tokenizers==0.23.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import tokenizers
import transformers
from transformers import AutoTokenizer, CLIPTokenizer, LlavaConfig

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
TEXT = "left of the red cat"
vocabulary, merges = {"<|startoftext|>": 0, "<|endoftext|>": 1}, []
for letter in sorted(set(TEXT) - {" "}):
    for token in (letter, letter + "</w>"):
        vocabulary[token] = len(vocabulary)
for word in TEXT.split():
    parts = [*word[:-1], word[-1] + "</w>"]
    while len(parts) > 1:
        merges.append((parts[0], parts[1]))
        parts = [parts[0] + parts[1], *parts[2:]]
        vocabulary.setdefault(parts[0], len(vocabulary))
CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=32).save_pretrained("alone")
CLIPTokenizer.from_pretrained("alone").save_pretrained("llava")
LlavaConfig().save_pretrained("llava")

seen = {}
for folder in ("alone", "llava"):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT).input_ids
    seen[folder] = (type(tokenizer).__name__, ids, tokenizer.decode(ids, skip_special_tokens=True))
    print(folder, *seen[folder])
named = CLIPTokenizer.from_pretrained("llava")
print("by its own class:", named.decode(seen["llava"][1], skip_special_tokens=True))

same_ids = seen["alone"][1] == seen["llava"][1]
if not (same_ids and seen["alone"][2] == TEXT and seen["llava"][2] == TEXT.replace(" ", "</w>") + "</w>"):
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
