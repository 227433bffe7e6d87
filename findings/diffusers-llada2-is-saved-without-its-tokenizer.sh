#!/usr/bin/env bash
# LLaDA2Pipeline.save_pretrained leaves the tokenizer out, and what it saved cannot be loaded.
#
# Expected: save_pretrained writes every component that model_index.json names, so that from_pretrained gives the
#   pipeline back, as with all others.
# Seen: model/, scheduler/ and a model_index.json that names a tokenizer, but no tokenizer/; nothing is said.
#   from_pretrained of the folder then raises an AttributeError about a list. With the tokenizer saved by hand into
#   tokenizer/ it raises the same; handed over as an argument, the folder loads.
# Versions: diffusers 0.42.1, transformers 5.24.0.
# Harm: A tuned model that was saved so, and of whose tokenizer no copy was kept, is lost for use; the error does not
#   say what is missing.
# genalign: reads the tokenizer from tokenizer/ by itself, and its builder writes it there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import os

import diffusers
import transformers
from diffusers import BlockRefinementScheduler, DiffusionPipeline, LLaDA2Pipeline
from tokenizers import Tokenizer, models
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

print("diffusers", diffusers.__version__, "transformers", transformers.__version__)
words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[MASK]": 2, "[EOS]": 3, "[PAD]": 4}))
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, mask_token="[MASK]", eos_token="[EOS]", pad_token="[PAD]"
)
ends = {name: 3 for name in ("eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id")}
config = ModernBertConfig(
    vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=4,
    **ends,
)
pipe = LLaDA2Pipeline(ModernBertForMaskedLM(config), BlockRefinementScheduler(), tokenizer)
pipe.save_pretrained("saved")
written = sorted(os.listdir("saved"))
print("written:", *written, "; named:", *(name for name in pipe.config if not name.startswith("_")))


def loaded(**given):
    try:
        return type(DiffusionPipeline.from_pretrained("saved", **given).tokenizer).__name__
    except AttributeError as error:
        return f"AttributeError: {error}"


alone = loaded()
tokenizer.save_pretrained("saved/tokenizer")
by_hand, handed = loaded(), loaded(tokenizer=tokenizer)
print("loaded:", alone, "; with tokenizer/:", by_hand, "; handed over:", handed)
lost = "tokenizer" not in written and alone.startswith("AttributeError") and by_hand.startswith("AttributeError")
if not (lost and not handed.startswith("AttributeError")):
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
