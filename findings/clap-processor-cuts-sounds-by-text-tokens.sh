#!/usr/bin/env bash
# A tokenizer that was saved after a truncating call makes ClapProcessor cut sounds to as many samples as texts have tokens.
#
# Expected: padding=True pads the texts; a sound of 10 s gives 1001 frames, whichever tokenizer stands beside it.
# Seen: A fast tokenizer keeps the truncation of its last call in tokenizer.json, and has it again, once loaded, as a
#   setting named max_length. The processor hands settings of its tokenizer to all modalities that know the name: the
#   sounds are cut to 77 samples (1.6 ms at 48 kHz) and give one frame. The warning speaks of texts alone: "`max_length`
#   is ignored when `padding`=`True`". With the same tokenizer saved before any call the frames are 1001.
# Versions: transformers 5.24.0, tokenizers 0.23.3, torch 2.13.0.
# Harm: Scores of a CLAP reward or metric that was fine-tuned and saved are computed from one frame: numbers without a
#   failure, which hardly depend on the sound.
# genalign: Its `clap` reward calls extractor and tokenizer apart; the builder of tiny-clap saves the tokenizer without
#   that state, and a test reads sounds through ClapProcessor.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0 tokenizers==0.23.3
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapProcessor, PreTrainedTokenizerFast

print("transformers", transformers.__version__)
words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "flute": 3}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
tokenizer.save_pretrained("before")
tokenizer(["a flute"], padding="max_length", max_length=77, truncation=True)
tokenizer.save_pretrained("after")
sound = 0.1 * np.random.default_rng(0).standard_normal(480_000).astype(np.float32)
frames = {}
for folder in ("before", "after"):
    processor = ClapProcessor(ClapFeatureExtractor(truncation="rand_trunc"), AutoTokenizer.from_pretrained(folder))
    read = processor(text=["a flute"], audio=[sound], sampling_rate=48_000, padding=True, return_tensors="np")
    frames[folder] = read["input_features"].shape[2]
    print(f"tokenizer saved {folder} a truncating call: {frames[folder]} frames of a sound of 10 s")
raise SystemExit(0 if frames == {"before": 1001, "after": 1} else f"this has changed: {frames}")
PY
