#!/usr/bin/env bash
# AudioLDM2 with several waveforms a prompt returns one prompt's waveforms for another prompt.
#
# Expected: num_waveforms_per_prompt=2 of two prompts gives four waveforms: the two of the first prompt, better one
#   first, then the two of the second.
# Seen: Each prompt's CLAP scores are sorted over the waveforms of the whole batch. A waveform that fits both
#   prompts stands there twice, one that was made for a prompt may come back under the other, and some are gone.
# Versions: diffusers 0.42.1, AudioLDM2Pipeline.score_waveforms, which the call uses when librosa is installed; with
#   a small CLAP of random weights. The result differs from the expected one for any weights that do not rank every
#   prompt's own waveforms highest.
# Harm: Rewards are computed of pairs of prompt and sound that never belonged together; of best-of-n comparisons the
#   n of one prompt compete with the other prompts' samples, and results depend on the batch.
# genalign: Replicates the prompts itself, one waveform a row, so that nothing is ranked; the argument is refused
#   (policy/call.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 accelerate==1.15.0 librosa==0.11.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
from types import SimpleNamespace

import diffusers
import torch
from diffusers import AudioLDM2Pipeline
from transformers import BatchEncoding, ClapConfig, ClapFeatureExtractor, ClapModel

print("torch", torch.__version__, "diffusers", diffusers.__version__)
torch.manual_seed(0)
config = ClapConfig(
    text_config=dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        projection_dim=8,
    ),
    audio_config=dict(
        patch_embeds_hidden_size=16, hidden_size=128, depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1],
        projection_dim=8,
    ),
    projection_dim=8,
)
WORDS = {"rain": [0, 7, 2], "bells": [0, 30, 2]}


def tokenizer(text: list[str], **options) -> BatchEncoding:
    ids = torch.tensor([WORDS[word] for word in text])
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


pipe = SimpleNamespace(  # the parts of the pipeline that its method reads
    tokenizer=tokenizer,
    vocoder=SimpleNamespace(config=SimpleNamespace(sampling_rate=48000)),
    feature_extractor=ClapFeatureExtractor(truncation="rand_trunc"),
    text_encoder=ClapModel(config).eval(),
)
waves = 0.1 * torch.randn(4, 24000)
waves[1] = waves[1].cumsum(0) / 10  # other spectra, so that scores differ
waves[3] *= torch.arange(24000) % 100 == 0
with torch.no_grad():
    ranked = AudioLDM2Pipeline.score_waveforms(pipe, ["rain", "bells"], waves, 2, "cpu", torch.float32)
order = [next(i for i in range(4) if torch.equal(row, waves[i])) for row in ranked]
print("waveforms 0 and 1 were made for rain, 2 and 3 for bells")
print("returned for rain:", order[:2], "and for bells:", order[2:])
still = set(order[:2]) != {0, 1} and set(order[2:]) != {2, 3} or len(set(order)) < 4

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
